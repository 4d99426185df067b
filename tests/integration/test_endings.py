"""An attempt whose journal, or lease, is lost just when it says how it ends."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import redis
from celery.canvas import Signature
from celery.exceptions import Retry, SoftTimeLimitExceeded, TaskRevokedError
from kombu.exceptions import OperationalError

from celery_durable import DurableTask, RunOptions
from celery_durable.app.store import store_of
from celery_durable.config.settings import AttemptSettings
from celery_durable.delivery import call, outcome
from celery_durable.delivery.call import fingerprint
from celery_durable.delivery.message import HEADER, SEED
from celery_durable.drivers.info import TaskInfo
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.interrupts import Fenced, JournalLost, NotNow
from celery_durable.invocation import eager_journals
from celery_durable.invocation.session import RunSession
from celery_durable.redis.journal import RedisJournal
from tests.integration.runs import (
    app_at,
    delivery,
    execute,
    execute_sent,
    lapse,
    new_id,
    opened,
    request_of,
    saved_call,
    store_at,
    task_of,
)

NOWHERE = "redis://127.0.0.1:1/0"
REDELIVERED = {"exchange": "", "routing_key": "celery", "redelivered": True}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """What is sent instead of messages; its side effect says how that ends."""
    sending = Mock(return_value=None)
    monkeypatch.setattr(Signature, "apply_async", lambda signature, *_, **__: sending(signature))
    return sending


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The fields of each suspension that was tried."""
    return []


def refuse(monkeypatch: pytest.MonkeyPatch, told: list[set[str]], error: BaseException) -> None:
    def suspend(_: RedisJournal, delay: float, fields: Mapping[str, str], *_more: float, **_facts: bool) -> None:
        told.append(set(fields))
        raise error

    monkeypatch.setattr(RedisJournal, "suspend", suspend)


def fails(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0, RunOptions(initial_retry_interval=60, max_attempts=3))


def succeeds(self: Any) -> str:
    return str(self.ctx.uuid())


def sleeps(self: Any) -> None:
    self.ctx.sleep(60)


def retries_itself(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    raise self.retry(countdown=1)


def retries_itself_over_a_loss(self: Any) -> None:
    """A step has met the lost journal already, and a bare ``except`` has swallowed that."""
    self.ctx.run("charge", lambda: 1)
    self.ctx._attempt.pulse.stop(JournalLost(JournalUnavailableError("away")))  # noqa: SLF001
    raise self.retry(countdown=1)


def fails_for_a_second(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0, RunOptions(initial_retry_interval=1, max_attempts=3))


def fails_unsendably(self: Any) -> None:
    self.ctx.uuid()
    self.request.headers = {"colour": object()}
    fails_for_a_second(self)


def test_an_attempt_that_succeeds_is_freed_without_the_garbage_collector(redis_url: str) -> None:
    """A worker may keep large values in an attempt, and the collector comes late."""
    attempts: list[weakref.ref[Any]] = []

    def body(self: Any) -> str:
        attempts.append(weakref.ref(self.ctx._attempt))  # noqa: SLF001
        return succeeds(self)

    with app_at(redis_url) as app:
        task = task_of(app, body)
        gc.disable()
        try:
            assert execute(task, task_id=new_id()) == "SUCCESS"
            assert [attempt() for attempt in attempts] == [None]
        finally:
            gc.enable()


@pytest.mark.parametrize("ends", ["value", "error"])
def test_the_outcome_of_a_task_that_calls_its_own_run_is_delivered(
    redis_url: str, redis_client: redis.Redis, ends: str
) -> None:
    """Both calls have the same request, and only the outer one has a run in Redis."""

    def body(self: Any, number: int) -> Any:
        self.ctx.uuid()
        if number:
            return self.run(number - 1)
        return ends if ends == "value" else int(ends)

    task_id = new_id()
    with app_at(redis_url) as app:
        assert execute(task_of(app, body), 2, task_id=task_id) == ("SUCCESS" if ends == "value" else "FAILURE")
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)
        lease = redis_client.zscore(store_of(app).keys(task_id).leases, task_id)

    assert "delivered" in journal
    assert lease is None


def test_the_arguments_of_a_task_without_a_context_are_freed_without_the_garbage_collector(redis_url: str) -> None:
    class Large:
        """What the body gets."""

    def body(_: Any, large: Large) -> None:
        freed.append(weakref.ref(large))

    freed: list[weakref.ref[Large]] = []
    with app_at(redis_url) as app:
        task = task_of(app, body)
        gc.disable()
        try:
            task(Large())
            assert [large() for large in freed] == [None]
        finally:
            gc.enable()


@pytest.mark.parametrize("body", [fails, sleeps])
@pytest.mark.parametrize(
    ("error", "state"), [(JournalUnavailableError("away"), "RETRY"), (Fenced(), "IGNORED")], ids=["away", "fenced"]
)
def test_a_suspension_that_fails_is_tried_once_and_not_as_something_else(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, told: list[set[str]],
    body: Any, error: BaseException, state: str,
) -> None:  # fmt: skip
    refuse(monkeypatch, told, error)
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, body), task_id=task_id) == state
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert told == [{"resume", "step:1", "executed"}]
    assert journal["status"] == "running"


@pytest.mark.parametrize("body", [retries_itself, retries_itself_over_a_loss])
def test_a_users_retry_that_could_not_be_recorded_is_sent_once(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, told: list[set[str]], published: Mock,
    body: Any,
) -> None:  # fmt: skip
    """Its message brings the run back. The lost journal is no reason for a second message."""
    refuse(monkeypatch, told, JournalUnavailableError("away"))
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, body), task_id=task_id) == "RETRY"
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert (len(told), published.call_count) == (1, 1)
    assert journal["status"] == "running"


def test_what_celery_could_not_store_is_no_failure_of_the_run(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result backend is away for a moment, and there again for the failure that Celery makes of that."""

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    task_id = new_id()
    with app_at(redis_url) as app:
        task = task_of(app, succeeds)
        monkeypatch.setattr(app.backend, "mark_as_done", away)
        with pytest.warns(RuntimeWarning, match="Exception raised outside body"):
            execute(task, task_id=task_id)
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

        assert task.AsyncResult(task_id).state == "PENDING"
        # Of another task it is one, and so is the next one of this.
        task.backend.mark_as_failure(task_id, ValueError("refused"))
        assert task.AsyncResult(task_id).state == "FAILURE"

    assert "delivered" not in journal
    assert journal["status"] == "succeeded"


@pytest.mark.parametrize("body", [fails, retries_itself])
def test_a_retry_that_could_not_be_stored_is_no_failure_of_the_run(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock, body: Any
) -> None:
    store = Mock(side_effect=ConnectionError("away"))
    task_id = new_id()
    with app_at(redis_url, durable_max_broker_delay=30) as app:
        task = task_of(app, body)
        with monkeypatch.context() as patch:
            patch.setattr(app.backend, "store_result", store)
            assert execute(task, task_id=task_id) == "RETRY"

        assert store.call_count == 1
        assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "suspended"
        # What Celery says of it from now on stands again.
        task.backend.mark_as_retry(task_id, ValueError("again"))
        assert task.AsyncResult(task_id).state == "RETRY"


class FrozenBackend:
    """A result backend whose process stands still, while it stores RETRY, until the run has ended elsewhere."""

    def __init__(self, app: Any, end: Callable[[], None]) -> None:
        self._store, self._end = app.backend.store_result, end

    def __call__(self, task_id: str, result: Any, state: str, **options: Any) -> Any:
        if state == "RETRY":
            self._end()
        return self._store(task_id, result, state, **options)


@pytest.mark.parametrize("body", [fails, fails_for_a_second, retries_itself])
def test_a_retry_is_stored_over_no_end(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock, body: Any
) -> None:
    """The process stood still for longer than its lease, and the run has failed in another one."""
    task_id = new_id()

    with app_at(redis_url) as app:
        task, store = task_of(app, body), store_of(app)

        def end_elsewhere() -> None:
            lapse(redis_client, store, task_id)
            other = opened(store, task_id, task=task.name, fingerprint=fingerprint([], {}), fresh=False)
            other.finish("failed", {"outcome": outcome.encode_error(ValueError("for good"))})
            other.deliver(60)
            other.prove_lease()
            app.backend.mark_as_failure(task_id, ValueError("for good"))

        monkeypatch.setattr(app.backend, "store_result", FrozenBackend(app, end_elsewhere))
        assert execute(task, task_id=task_id) == "IGNORED"

        found = task.AsyncResult(task_id)
        assert (found.state, str(found.result)) == ("FAILURE", "for good")
    assert published.call_count == 0


@pytest.mark.parametrize("body", [fails_for_a_second, retries_itself])
def test_retry_is_stored_while_the_run_is_nobody_elses(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock, body: Any
) -> None:
    """Once it is given back it may end at once, and what is stored after that would stand over its end."""
    task_id, found = new_id(), []

    with app_at(redis_url) as app:
        key, store = store_of(app).keys(task_id).run, app.backend.store_result

        def watched(task_id: str, result: Any, state: str, **options: Any) -> Any:
            found.append((state, redis_client.hget(key, "status"), published.call_count))
            return store(task_id, result, state, **options)

        monkeypatch.setattr(app.backend, "store_result", watched)
        assert execute(task_of(app, body), task_id=task_id) == "RETRY"

    assert found == [("RETRY", "running", 0)]


def test_a_process_that_was_forked_while_an_error_was_handled_delivers_its_outcomes(
    redis_url: str, redis_client: redis.Redis
) -> None:
    """To it that error passes for ever; a broker was away, say, when a process of the pool was replaced."""
    task_id = new_id()
    with app_at(redis_url) as app:
        try:
            int("no number")
        except ValueError:
            assert execute(task_of(app, succeeds), task_id=task_id) == "SUCCESS"
        keys = store_of(app).keys(task_id)

    assert redis_client.hmget(keys.run, "status", "delivered") == ["succeeded", "1"]
    assert redis_client.zscore(keys.leases, task_id) is None


class Swallowing(DurableTask[Any, Any]):
    """Has a result for every failure."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(*args, **kwargs)
        except ZeroDivisionError:
            return "fallback"


def divides(self: Any) -> None:
    self.ctx.uuid()
    _ = 1 / 0


def cannot_go_on(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0)


@pytest.mark.parametrize("autoretry_for", [(), (ZeroDivisionError,)], ids=["plain", "autoretry"])
@pytest.mark.parametrize("body", [divides, cannot_go_on])
def test_a_failure_that_code_around_the_body_swallows_is_a_success(
    redis_url: str, redis_client: redis.Redis, body: Any, autoretry_for: tuple[type[Exception], ...]
) -> None:
    """Celery, which has its own retries around the body, gives up before that."""
    task_id = new_id()
    with app_at(redis_url) as app:
        made = app.task(
            base=Swallowing, bind=True, shared=False, name="shop.swallows", autoretry_for=autoretry_for, max_retries=0
        )(body)
        assert execute(app.tasks[made.name], task_id=task_id) == "SUCCESS"
        keys, ended = store_of(app).keys(task_id), outcome.read(store_of(app).runs.load(task_id), frozenset())

    assert (ended.status, ended.value, ended.error, ended.delivered) == ("succeeded", "fallback", None, True)
    assert redis_client.zscore(keys.leases, task_id) is None
    assert redis_client.ttl(keys.run) > 0


def test_a_retry_that_code_around_the_body_swallows_goes_on(
    redis_url: str, redis_client: redis.Redis, published: Mock
) -> None:
    class Silent(Swallowing):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with suppress(Retry):
                return super().__call__(*args, **kwargs)

    task_id = new_id()
    with app_at(redis_url) as app:
        made = app.task(base=Silent, bind=True, shared=False, name="shop.silent")(retries_itself)
        assert execute(app.tasks[made.name], task_id=task_id) == "SUCCESS"
        assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "suspended"

    assert published.call_count == 1


# -- a retry that is not published at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("acks_late", [True, False])
@pytest.mark.parametrize("body", [fails_for_a_second, retries_itself])
def test_a_soft_time_limit_that_strikes_while_a_retry_is_published_fails_nothing(
    redis_url: str, redis_client: redis.Redis, published: Mock, body: Any, acks_late: bool
) -> None:
    published.side_effect = [SoftTimeLimitExceeded(), None]
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, body, acks_late=acks_late), task_id=task_id) == "RETRY"
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert published.call_count == 2
    assert journal["status"] == "suspended"


AWAY = [OperationalError("away"), AttributeError("'NoneType' object has no attribute 'client'")]
"""What kombu raises when its broker is away: it knows that, or it stumbles over a channel that was closed."""


@pytest.mark.parametrize("error", AWAY, ids=["known", "unknown"])
@pytest.mark.parametrize(("acks_late", "state"), [(True, "REJECTED"), (False, "RETRY")])
@pytest.mark.parametrize("body", [fails_for_a_second, retries_itself])
def test_a_retry_that_finds_no_broker_is_no_failure(
    redis_url: str, redis_client: redis.Redis, published: Mock, body: Any, acks_late: bool, state: str, error: Exception
) -> None:
    """Its message goes back to the broker; one that was acknowledged when the task began is left to the journal."""
    published.side_effect = error
    task_id = new_id()

    with app_at(redis_url) as app:
        keys = store_of(app).keys(task_id)
        assert execute(task_of(app, body, acks_late=acks_late), task_id=task_id) == state

    assert published.call_count == 1
    assert redis_client.hget(keys.run, "status") == "suspended"
    assert redis_client.zscore(keys.due, task_id) is not None


def test_a_retry_that_cannot_be_encoded_fails_the_run(
    redis_url: str, redis_client: redis.Redis, published: Mock
) -> None:
    task_id = new_id()
    with app_at(redis_url) as app:
        assert execute(task_of(app, fails_unsendably), task_id=task_id) == "FAILURE"
        assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "failed"

    assert published.call_count == 0


@pytest.mark.parametrize(("acks_late", "state"), [(True, "REJECTED"), (False, "IGNORED")])
def test_an_attempt_that_neither_redis_nor_the_broker_listens_to_ends_without_a_word(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock,
    acks_late: bool, state: str,
) -> None:  # fmt: skip
    def away(*_: Any, **__: Any) -> None:
        raise JournalUnavailableError("away")

    monkeypatch.setattr(RedisJournal, "_end", away)
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, fails_unsendably, acks_late=acks_late), task_id=task_id) == state
        assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "running"


def test_a_time_limit_that_strikes_after_the_outcome_does_not_pass_for_its_delivery(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock
) -> None:
    monkeypatch.setattr(eager_journals, "forget", Mock(side_effect=SoftTimeLimitExceeded()))
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, succeeds, autoretry_for=(Exception,)), task_id=task_id) == "RETRY"
        keys = store_of(app).keys(task_id)

    assert published.call_count == 0
    assert redis_client.hmget(keys.run, "status", "delivered") == ["succeeded", None]
    assert redis_client.zscore(keys.leases, task_id) is not None


# -- what a retry says ------------------------------------------------------------------------------------------------


def fails_at_first(self: Any, items: list[str]) -> list[str]:
    """Change the argument in place, and fail."""
    self.ctx.run("charge", lambda: 1)
    items.append("x")
    if self.request.retries == 0:
        raise OSError("away")
    return items


def has_a_step_that_fails_at_first(self: Any, items: list[str]) -> list[str]:
    self.ctx.uuid()
    items.append("x")
    retries = self.request.retries
    self.ctx.run("charge", lambda: 1 / retries, RunOptions(initial_retry_interval=1, max_attempts=3))
    return items


def retries_itself_at_first(self: Any, items: list[str]) -> list[str]:
    self.ctx.run("charge", lambda: 1)
    items.append("x")
    if self.request.retries == 0:
        raise self.retry(countdown=1)
    return items


@pytest.mark.parametrize("body", [fails_at_first, has_a_step_that_fails_at_first, retries_itself_at_first])
def test_a_retry_has_the_arguments_that_the_run_began_with_whatever_the_body_made_of_them(
    redis_url: str, redis_client: redis.Redis, published: Mock, body: Any
) -> None:
    task_id = new_id()

    with app_at(redis_url) as app:
        task = task_of(app, body, autoretry_for=(OSError,), retry_kwargs={"countdown": 0})
        assert execute(task, ["a"], task_id=task_id) == "RETRY"
        [message] = published.call_args.args
        saved = saved_call(task, redis_client, task_id)

        assert execute_sent(task, redis_client, message) == "SUCCESS"
        assert task.AsyncResult(task_id).result == ["a", "x"]

    assert list(saved.args) == list(message.args) == [["a"]]


def opens_late(self: Any, options: dict[str, int]) -> int:
    limit = options.pop("limit")
    if self.ctx.run("charge", lambda: 1) and self.request.retries == 0:
        raise self.retry(countdown=1)
    return limit


def test_a_run_that_is_opened_late_has_the_arguments_that_were_sent(
    redis_url: str, redis_client: redis.Redis, published: Mock
) -> None:
    task_id = new_id()

    with app_at(redis_url) as app:
        task = task_of(app, opens_late)
        properties = request_of(task, task_id, {"limit": 5}).request_dict["properties"]
        assert execute(task, {"limit": 5}, task_id=task_id, properties=properties) == "RETRY"
        saved = saved_call(task, redis_client, task_id)

        assert execute_sent(task, redis_client, published.call_args.args[0]) == "SUCCESS"
        assert task.AsyncResult(task_id).result == 5

    assert (saved.args, saved.kwargs) == ([{"limit": 5}], {})


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
@pytest.mark.parametrize("countdown", [20, 0], ids=["later", "now"])
def test_a_retry_that_was_sent_runs_however_the_body_ends_then(
    redis_url: str, redis_client: redis.Redis, published: Mock, countdown: float, fails: bool
) -> None:
    """``self.retry(throw=False)``: what the body makes of itself is shown meanwhile, as in plain Celery."""
    task_id, charges = new_id(), []

    def body(self: Any) -> int:
        self.ctx.run("charge", lambda: charges.append(1))
        if self.request.retries == 0:
            self.retry(throw=False, countdown=countdown)
            self.ctx.run("ship", lambda: 1)
            if fails:
                raise OSError("away")
        return int(self.request.retries)

    with app_at(redis_url) as app:
        task = task_of(app, body)
        keys = store_of(app).keys(task_id)
        assert execute(task, task_id=task_id) == ("FAILURE" if fails else "SUCCESS")
        assert task.AsyncResult(task_id).state == ("FAILURE" if fails else "SUCCESS")
        waits, due = redis_client.hmget(keys.run, "status", "due"), redis_client.zscore(keys.due, task_id)
        redis_client.hdel(keys.run, "step:2")  # which this body does not reach again

        assert execute_sent(task, redis_client, published.call_args.args[0]) == "SUCCESS"
        assert redis_client.hmget(keys.run, "status", "delivered") == ["succeeded", "1"]

    # What was due at once may have come, and been forgotten.
    assert waits[0] == "suspended"
    assert due == int(waits[1]) + (30_000 if countdown else 0)
    assert charges == [1]


def takes_two(self: Any, a: int, b: int = 0, /, c: int = 0, *more: int, d: int = 0, **named: int) -> Any:
    self.ctx.run("charge", lambda: 1)
    if self.request.retries == 0:
        raise self.retry(**self.new)
    return [a, b, c, *more, d, named]


@pytest.mark.parametrize(
    ("args", "kwargs", "new"),
    [
        ([1], {"c": 2, "d": 3, "b": 4}, {"args": [5, 6, 7]}),
        ([1], {"c": 2}, {"args": [5]}),
        ([1, 2, 3], {}, {"kwargs": {"c": 7}}),
        ([1, 2, 3, 4], {"d": 5}, {"kwargs": {"b": 7, "d": 8}}),
        ([1, 2], {"d": 5}, {"kwargs": {}}),
        ([1, 2], {"d": 5}, {"args": [7], "kwargs": {"c": 8}}),
        ([1, 2], {"d": 5}, {"queue": "other"}),
    ],
)
def test_the_journal_has_the_arguments_of_a_retry_as_celerys_message_has_them(
    redis_url: str, redis_client: redis.Redis, published: Mock, args: Any, kwargs: Any, new: dict[str, Any]
) -> None:
    """New ones take the place of old ones that they contradict."""
    task_id = new_id()

    with app_at(redis_url) as app:
        task = task_of(app, takes_two)
        task.new = {"countdown": 1, **new}
        assert execute(task, *args, task_id=task_id, kwargs=kwargs) == "RETRY"
        [message] = published.call_args.args
        saved = saved_call(task, redis_client, task_id)

        assert execute_sent(task, redis_client, message) == "SUCCESS"

    assert (list(saved.args), saved.kwargs) == (list(message.args), message.kwargs)


@pytest.mark.parametrize("body", [fails_for_a_second, retries_itself])
def test_a_retry_does_not_say_which_queues_its_message_waited_in(
    redis_url: str, redis_client: redis.Redis, published: Mock, body: Any
) -> None:
    """RabbitMQ would take it for a message that goes around in circles, and drop it."""
    task_id = new_id()
    waited = {"x-death": [{"queue": "celery_delayed_0", "reason": "expired"}], "x-first-death-reason": "expired"}

    with app_at(redis_url) as app:
        task = task_of(app, body)
        assert execute(task, task_id=task_id, headers={"colour": "red", **waited}) == "RETRY"
        saved = saved_call(task, redis_client, task_id)

    [message] = published.call_args.args
    assert message.options["headers"].keys() == {"colour", HEADER, SEED}
    assert saved.options["headers"] == {"colour": "red"}


@pytest.mark.parametrize(("headers", "sent"), [({"size": "L"}, {"size": "L"}), ({}, {}), (None, {})])
def test_the_headers_of_a_users_retry_replace_all_but_ours(
    redis_url: str, redis_client: redis.Redis, published: Mock, headers: Any, sent: dict[str, str]
) -> None:
    task_id = new_id()

    def body(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        raise self.retry(countdown=1, headers=headers)

    with app_at(redis_url) as app:
        task = task_of(app, body)
        assert execute(task, task_id=task_id, headers={"colour": "red"}) == "RETRY"
        saved = saved_call(task, redis_client, task_id)

    [message] = published.call_args.args
    ours = {HEADER: {"retries": 0}, SEED: message.options["headers"][SEED]}
    assert message.options["headers"] == {**sent, **ours}
    assert saved.options["headers"] == sent


def test_a_retry_that_changes_nothing_leaves_the_saved_call_alone(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, published: Mock
) -> None:
    suspend = create_autospec(RedisJournal.suspend, side_effect=RedisJournal.suspend)
    monkeypatch.setattr(RedisJournal, "suspend", suspend)

    with app_at(redis_url) as app:
        assert execute(task_of(app, retries_itself), task_id=new_id()) == "RETRY"

    _, _, fields, *_ = suspend.call_args.args
    assert "call" not in fields
    assert published.call_count == 1


# -- a journal that is not there any more ------------------------------------------------------------------------------


@pytest.mark.parametrize("at_its_end", [True, False])
@pytest.mark.parametrize(("retention", "messages"), [(0, 0), (60, 1)])
def test_an_attempt_that_has_slept_through_its_lease_and_the_retention_says_nothing(
    redis_url: str, redis_client: redis.Redis, published: Mock, at_its_end: bool, retention: float, messages: int
) -> None:
    """Another one may have ended the run, and the journal is gone for that."""
    task_id = new_id()

    def body(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        attempt = self.ctx._attempt  # noqa: SLF001
        attempt.pulse.journal.ownership.renewed_at -= 40  # its lease lasts for 30 s
        redis_client.delete(*store_of(self.app).keys(task_id).all)
        if not at_its_end:
            self.ctx.run("ship", lambda: 1)

    with app_at(redis_url, durable_retention=retention) as app:
        found = execute(task_of(app, body), task_id=task_id)

    if at_its_end and retention:
        # All is done: to begin again would do it twice.
        assert (found, published.call_count) == ("SUCCESS", 0)
    else:
        # Of a lost lease no state is stored.
        assert (found, published.call_count) == ("IGNORED", messages)


def test_a_run_that_was_revoked_is_over_for_its_attempt_however_short_its_journal_is_kept(
    redis_url: str, redis_client: redis.Redis, published: Mock
) -> None:
    task_id = new_id()

    def body(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        assert store_of(self.app).runs.terminate(
            task_id, "revoked", 0, outcome.encode_error(TaskRevokedError("revoked"))
        )
        self.ctx.run("ship", lambda: 1)

    with app_at(redis_url, durable_lease=2) as app:
        assert execute(task_of(app, body), task_id=task_id) == "IGNORED"
        assert 0 < redis_client.pttl(store_of(app).keys(task_id).run) <= 2000

    assert published.call_count == 0


def test_a_journal_without_its_seed_fails_the_run_once(redis_url: str, redis_client: redis.Redis) -> None:
    task_id = new_id()

    with app_at(redis_url, durable_max_broker_delay=10) as app:
        task = task_of(app, fails)
        assert execute(task, task_id=task_id) == "RETRY"
        keys = store_of(app).keys(task_id)
        redis_client.hdel(keys.run, "seed")
        redis_client.hset(keys.run, "due", 0)

        assert execute(task, task_id=task_id, delivery_info=REDELIVERED) == "FAILURE"
        assert redis_client.hmget(keys.run, "status", "delivered") == ["failed", "1"]
        assert redis_client.zscore(keys.leases, task_id) is None
        assert execute(task, task_id=task_id, delivery_info=REDELIVERED) == "IGNORED"


# -- messages that begin nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ({"headers": {HEADER: {"hint": 1}}}, {"hint": 1}),
        ({"headers": {HEADER: {"reopen": "again"}}}, {"reopen": "again"}),
        ({"delivery_info": REDELIVERED}, {}),
    ],
    ids=["hint", "reopen", "redelivered"],
)
def test_a_message_that_finds_no_redis_is_repeated_as_what_it_was(
    published: Mock, message: dict[str, Any], kept: dict[str, Any]
) -> None:
    with app_at(NOWHERE, durable_lease=1) as app:
        execute(task_of(app, succeeds), task_id=new_id(), **message)

    [repeated] = published.call_args.args
    assert repeated.options["headers"][HEADER] == {"retries": 1, "by_policy": 0, **kept}


def test_a_time_limit_while_a_run_is_opened_fails_nothing(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, published: Mock
) -> None:
    """It may come at any moment of that, also before the journal is asked."""
    monkeypatch.setattr(call, "delivery_of", Mock(side_effect=SoftTimeLimitExceeded()))
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, succeeds), task_id=task_id) in ("RETRY", "IGNORED")
        assert not redis_client.exists(store_of(app).keys(task_id).run)

    assert published.call_count == 1


def test_a_first_message_that_finds_no_redis_keeps_its_expiry(published: Mock) -> None:
    until = "2031-01-01T00:00:00+00:00"
    with app_at(NOWHERE, durable_lease=1) as app:
        assert execute(task_of(app, succeeds), task_id=new_id(), expires=until) == "RETRY"

    [repeated] = published.call_args.args
    assert repeated.options["expires"] == until
    assert repeated.options["headers"][HEADER].keys() == {"retries", "by_policy", "asked"}


def test_an_outcome_that_cannot_be_stored_once_more_is_no_failure(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = new_id()
    with app_at(redis_url) as app:
        task = task_of(app, succeeds)
        assert execute(task, task_id=task_id) == "SUCCESS"
        asked = Mock(side_effect=ConnectionError("away"))
        monkeypatch.setattr(app.backend, "store_result", asked)

        assert execute(task, task_id=task_id, delivery_info=REDELIVERED) == "IGNORED"

    assert asked.call_count == 1


def test_a_duplicate_of_a_live_run_is_forgotten_at_once_however_short_the_lease(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, opening = new_id(), create_autospec(RedisJournal.open, side_effect=RedisJournal.open)
    monkeypatch.setattr(RedisJournal, "open", opening)

    with store_at(redis_url, durable_lease=1) as store:
        opened(store, task_id)
        journal, lease = store.journal_for(task_id, store.settings)
        session = RunSession(journal, store.settings, lease)
        with pytest.raises(NotNow, match="another attempt holds the lease"):
            session.open(
                delivery(task_id),
                TaskInfo(task_id, "shop.order"),
                AttemptSettings.of(store.settings, build=""),
            )

    assert opening.call_count == 2
