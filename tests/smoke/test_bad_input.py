"""Bad input, on real workers: each gets a named error that says what was found, where, and what to do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_durable import (
    ConfigurationError,
    ContextClosedError,
    ContextInStepError,
    EntryNotRecordableError,
    InvalidStepError,
    JournalUnreadableError,
    TerminalError,
)
from tests.servers import RedisServer
from tests.smoke import effects
from tests.smoke.apps import bad_input as tasks
from tests.smoke.nodes import BROKER_DB, DurableSetup, Worker
from tests.smoke.watching import journal, outcome, received, run_key, wait_until_delivered
from tests.waiting import eventually

RETRY = "celery_durable.retry"


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.bad_input"


@pytest.fixture
def worker(durable: DurableSetup) -> Iterator[Worker]:
    """One worker with one process; after all that a test has sent it, the next task runs well, in that process."""
    worker = durable.start_worker(concurrency=1)
    children = worker.children()
    yield worker
    result = tasks.good.delay()
    assert result.get(timeout=20) == "good"
    assert effects.count("good", result.id) == 1
    assert worker.children() == children


def refused(worker: Worker, result: AsyncResult, kind: type[Exception], *words: str) -> None:
    """Fail unless the task has failed once and for all, with an error that contains these words."""
    with pytest.raises(kind) as caught:
        result.get(timeout=20)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert result.state == "FAILURE"
    eventually(lambda: f"[{result.id}] raised" in worker.log())
    assert received(worker, result.id) == 1


def wait_for_success(durable: DurableSetup, task_id: str) -> None:
    """Wait until a run that has failed has succeeded; a result that was looked at keeps the FAILURE that it saw."""
    eventually(lambda: AsyncResult(task_id, app=durable.app).successful())


def entries(durable: DurableSetup, task_id: str) -> dict[str, str]:
    """Return what the steps and draws of the run have recorded."""
    fields = journal(durable.redis, task_id)
    return {name: value for name, value in fields.items() if ":" in name or name == "seed"}


def step_names(durable: DurableSetup, task_id: str) -> list[str]:
    fields = entries(durable, task_id)
    return [json.loads(value)["name"] for name, value in sorted(fields.items()) if name.startswith("step:")]


# -- values that the journal cannot keep


def test_a_value_that_does_not_encode_ends_the_run_and_retry_executes_the_step_again(
    durable: DurableSetup, worker: Worker
) -> None:
    expected = {
        "object": ["object"],
        "generator": ["generator"],
        "function": ["function"],
        "exception": ["ValueError"],
        "enum": ["Colour", "annotate produce", "type_hint=Colour"],
        "dataclass": ["Point", "annotate produce", "type_hint=Point"],
        "model": ["Item", "annotate produce", "type_hint=Item"],
        "nested": ["dict", "object"],
        "cycle": ["list"],
    }
    assert set(expected) == set(tasks.VALUES)
    results = {kind: tasks.returns.delay(kind) for kind in expected}

    for kind, words in expected.items():
        task_id = results[kind].id
        refused(worker, results[kind], EntryNotRecordableError, task_id, "step 'produce'", *words)
        assert [effects.count(name, task_id) for name in ("before", "produce")] == [1, 1]
        assert step_names(durable, task_id) == ["before"]
    assert effects.count("swallowed") == 0

    for result in results.values():
        durable.app.tasks[RETRY].delay(result.id).get(timeout=20)
    for result in results.values():
        wait_for_success(durable, result.id)
        assert [effects.count(name, result.id) for name in ("before", "produce")] == [1, 2]
    assert len({hit.key for hit in effects.hits("produce.key")}) == len(results)
    assert effects.count("produce.key") == 2 * len(results)


def test_a_value_that_is_too_large_ends_the_run(durable: DurableSetup, worker: Worker) -> None:
    fits, just_too_large = 998, 999  # with their two quotes
    result = tasks.returns_much.delay(just_too_large)

    refused(
        worker, result, EntryNotRecordableError, result.id, "step 'large'", "str", "1001 bytes", "max_entry_size=1000"
    )

    assert effects.count("large", result.id) == 1
    assert step_names(durable, result.id) == ["before"]
    assert tasks.returns_much.delay(fits).get(timeout=20) == fits


def test_a_large_value_is_recorded_with_a_warning(durable: DurableSetup, worker: Worker) -> None:
    result = tasks.returns_very_much.delay(2**20)
    assert result.get(timeout=20) == 2**20

    assert f"task {result.id}: step 'large' records {2**20 + 2} bytes" in worker.log()
    assert worker.log().count("records ") == 1


# -- options


def test_a_wrong_option_ends_the_run_before_the_step(durable: DurableSetup, worker: Worker) -> None:
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({"max_attempts": 0}, ["max_attempts", "1 or more", "0"]),
        ({"max_attempts": 1.5}, ["max_attempts", "whole number", "1.5"]),
        ({"initial_retry_interval": -1}, ["initial_retry_interval", "-1"]),
        ({"retry_interval_factor": 0}, ["retry_interval_factor", "0"]),
        ({"max_duration": "soon"}, ["max_duration", "soon"]),
        ({"jitter": "a bit"}, ["jitter", "a bit"]),
        ({"max_retry_duration": 1, "max_duration": 2}, ["max_retry_duration=1", "alias of max_duration", "2"]),
        ({"retry_interval": 1}, ["'retry_interval'", "did you mean 'initial_retry_interval'"]),
        ({"retry_interval_multiplier": 2}, ["did you mean 'retry_interval_factor'"]),
        ({"max_retries": 2}, ["did you mean 'max_attempts'"]),
        ({"max_atempts": 2}, ["did you mean 'max_attempts'"]),
        ({"serializer": "morse"}, ["morse"]),
        ({"compression": "vacuum"}, ["vacuum"]),
        ({"serializer": "pickle"}, ["pickle", "accept_content"]),
    ]
    results = [tasks.options.delay(**wrong) for wrong, _ in expected]

    for result, (_, words) in zip(results, expected, strict=True):
        refused(worker, result, ConfigurationError, *words)
        assert [effects.count(name, result.id) for name in ("before", "after")] == [1, 0]
        assert step_names(durable, result.id) == ["before"]


def test_options_are_given_by_name(durable: DurableSetup, worker: Worker) -> None:
    refused(worker, tasks.positional_options.delay(), ConfigurationError, "RunOptions", "keyword", "3")


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"durable_retension": 5}, ["durable_retension", "did you mean 'durable_retention'"]),
        ({"durable_lease": "soon"}, ["durable_lease", "soon"]),
        ({"durable_lease": 0.1}, ["durable_lease", "0.1"]),
        ({"durable_max_recoveries": -1}, ["durable_max_recoveries", "-1"]),
        ({"durable_key_prefix": "a{b}"}, ["durable_key_prefix", "a{b}"]),
        ({"durable_redis_url": "amqp://guest:hidden@host"}, ["durable_redis_url", "redis://", "amqp://"]),
    ],
    ids=str,
)
def test_a_wrong_setting_is_said_at_the_start_and_fails_durable_tasks_only(
    durable: DurableSetup, conf: dict[str, Any], words: list[str]
) -> None:
    worker = durable.start_worker(concurrency=1, conf=conf)
    assert [word for word in words if word not in worker.log()] == []

    result = tasks.good.delay()

    refused(worker, result, ConfigurationError, *words)
    assert effects.count("good") == 0
    assert tasks.plain.delay().get(timeout=20) == "plain"
    assert "hidden" not in worker.log()


# -- Redis


def test_without_any_redis_durable_tasks_fail_and_say_which_setting_is_missing(
    durable: DurableSetup, tmp_path: Path
) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    transport = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder)}
    worker = durable.start_worker(
        concurrency=1,
        conf={"broker_transport_options": transport, "broker_url": "filesystem://"},
        env={"CELERY_BROKER_URL": "filesystem://", "CELERY_RESULT_BACKEND": ""},
    )
    words = ["no Redis for the journal", "durable_redis_url", "broker_url=filesystem://", "result_backend=None"]
    assert [word for word in words if word not in worker.log()] == []
    with durable.app.connection_for_write("filesystem://", transport_options=transport) as connection:
        durable.app.amqp.queues  # noqa: B018  declares what the producer needs
        sent = tasks.good.apply_async(connection=connection)
        tasks.plain.apply_async(connection=connection)

    eventually(lambda: effects.count("plain") == 1)
    line = next(line for line in worker.log().splitlines() if f"[{sent.id}] raised unexpected" in line)
    assert [word for word in ["ConfigurationError", *words] if word not in line] == []
    assert received(worker, sent.id) == 1
    assert effects.count("good") == 0


def test_a_task_waits_for_a_redis_that_is_down_when_the_worker_starts(durable: DurableSetup) -> None:
    with RedisServer() as journals:
        journals.stop()
        conf = {"durable_redis_url": journals.url(), "durable_lease": 1}
        worker = durable.start_worker(concurrency=1, conf=conf)
        assert "durable tasks wait until it is back" in worker.log()
        result = tasks.patient.delay()
        eventually(lambda: result.state == "RETRY")
        assert "the task is retried in" in worker.log()
        assert tasks.plain.delay().get(timeout=20) == "plain"
        assert effects.count("patient") == 0

        journals.start()

        assert result.get(timeout=30) == "patient"
        assert effects.count("patient", result.id) == 1


def test_a_redis_that_goes_away_amid_an_attempt_is_waited_for_and_the_step_that_was_lost_is_named(
    durable: DurableSetup,
) -> None:
    with RedisServer(appendonly=True) as journals:
        worker = durable.start_worker(concurrency=1, conf={"durable_redis_url": journals.url(), "durable_lease": 1})
        result = tasks.interrupted.delay()
        effects.wait_until_blocked("amid")
        journals.stop()
        effects.release("amid")
        eventually(lambda: result.state == "RETRY")
        assert f"task {result.id}: step 'amid' ran but could not be recorded" in worker.log()
        assert tasks.plain.delay().get(timeout=20) == "plain"

        journals.start()

        assert result.get(timeout=30) == "amid"
        assert [effects.count(name, result.id) for name in ("before", "amid")] == [1, 2]


# -- journals that cannot be read


def failed_order(durable: DurableSetup) -> str:
    """Return the id of a run that has failed, whose journal a test damages before the run is sent again."""
    result = tasks.order.delay(7)
    with pytest.raises(ConnectionError):
        result.get(timeout=20)
    wait_until_delivered(durable, result.id)
    assert set(entries(durable, result.id)) == {"seed", "step:1", "step:2", "time:1", "uuid:1"}
    return result.id


@pytest.fixture
def broken(durable: DurableSetup, worker: Worker) -> str:
    return failed_order(durable)


def send_again(durable: DurableSetup, worker: Worker, task_id: str, kind: type[Exception], *words: str) -> None:
    """Send a run again under its id; fail unless that is refused, once and for all, with these words."""
    durable.redis.delete(f"celery-task-meta-{task_id}")
    tasks.order.apply_async((7,), task_id=task_id)
    error = outcome(durable, task_id)
    assert type(error) is kind
    message = str(error)
    assert [word for word in (task_id, *words) if word not in message] == [], message
    eventually(lambda: worker.log().count(f"[{task_id}] raised") == 2)
    assert received(worker, task_id) == 2
    assert [effects.count(name, task_id) for name in ("reserve", "charge")] == [1, 1]


def test_a_journal_of_another_version_is_left_as_it_is(durable: DurableSetup, worker: Worker) -> None:
    for version in ("9", "0", "new", ""):
        task_id = failed_order(durable)
        key = run_key(durable.redis, task_id)
        durable.redis.hset(key, "v", version)
        before = durable.redis.hgetall(key)

        send_again(durable, worker, task_id, JournalUnreadableError, key, f"'{version}'", "upgrade")

        assert durable.redis.hgetall(key) == before
        asked = durable.app.tasks[RETRY].delay(task_id)
        with pytest.raises(JournalUnreadableError):
            asked.get(timeout=20)
        assert durable.redis.hgetall(key) == before


def test_a_key_that_is_no_journal_is_left_as_it_is(durable: DurableSetup, worker: Worker, broken: str) -> None:
    key = run_key(durable.redis, broken)
    durable.redis.delete(key)
    durable.redis.set(key, "something else")

    send_again(durable, worker, broken, JournalUnreadableError, key)

    assert durable.redis.get(key) == "something else"


def test_a_damaged_entry_ends_the_run_and_stays(durable: DurableSetup, worker: Worker) -> None:
    damages = [
        ("step:1", '{"name":"reser'),
        ("step:1", ""),
        ("step:1", "[]"),
        ("step:1", '{"name":"reserve","attempts":1}'),
        ("step:1", '{"name":"reserve","state":"done","attempts":1,"at":1,"ms":1,"value":{"seats":[1,}'),
        ("step:2", '{"name":"charge","state":"melted","attempts":1}'),
        ("time:1", "noon"),
        ("uuid:1", "no-uuid"),
    ]
    for field, damaged in damages:
        task_id = failed_order(durable)
        durable.redis.hset(run_key(durable.redis, task_id), field, damaged)
        before = entries(durable, task_id)

        where = "step 'reserve'" if '"value"' in damaged else field
        send_again(durable, worker, task_id, JournalUnreadableError, where)

        assert entries(durable, task_id) == before


def test_a_journal_whose_seed_is_lost_is_not_given_another(durable: DurableSetup, worker: Worker, broken: str) -> None:
    durable.redis.hdel(run_key(durable.redis, broken), "seed")
    before = entries(durable, broken)

    send_again(durable, worker, broken, JournalUnreadableError, "seed")

    assert entries(durable, broken) == before


def test_a_repaired_entry_lets_the_run_go_on(durable: DurableSetup, worker: Worker, broken: str) -> None:
    key = run_key(durable.redis, broken)
    intact = durable.redis.hget(key, "step:1")
    durable.redis.hset(key, "step:1", "damaged")
    send_again(durable, worker, broken, JournalUnreadableError, "step:1")
    durable.redis.hset(key, "step:1", intact)

    durable.app.tasks[RETRY].delay(broken).get(timeout=20)

    wait_for_success(durable, broken)
    assert [effects.count(name, broken) for name in ("reserve", "charge")] == [1, 1]


# -- ids that are taken


def test_an_id_of_another_run_is_refused_and_changes_nothing(durable: DurableSetup, worker: Worker) -> None:
    result = tasks.another.delay(1)
    assert result.get(timeout=20) == "another 1"
    wait_until_delivered(durable, result.id)
    journaled, stored = journal(durable.redis, result.id), durable.redis.get(f"celery-task-meta-{result.id}")

    tasks.another.apply_async((2,), task_id=result.id)
    tasks.order.apply_async((1,), task_id=result.id)

    eventually(lambda: worker.log().count(f"task {result.id} refused") == 2)
    lines = [line for line in worker.log().splitlines() if f"task {result.id} refused" in line]
    assert f"{tasks.another.name} with other arguments" in lines[0]
    assert tasks.another.name in lines[1]
    assert "other arguments" not in lines[1]
    assert all("new task_id" in line for line in lines)
    assert journal(durable.redis, result.id) == journaled
    assert durable.redis.get(f"celery-task-meta-{result.id}") == stored
    assert effects.count("another") == 1
    assert effects.count("reserve") == 0
    assert received(worker, result.id) == 3
    with durable.broker_server.client(BROKER_DB) as broker:
        eventually(lambda: broker.hlen("unacked") == 0)


def test_an_id_of_a_failed_run_is_refused_to_other_arguments(
    durable: DurableSetup, worker: Worker, broken: str
) -> None:
    before = journal(durable.redis, broken)

    tasks.order.apply_async((8,), task_id=broken)

    eventually(lambda: f"task {broken} refused" in worker.log())
    assert journal(durable.redis, broken) == before
    assert AsyncResult(broken, app=durable.app).state == "FAILURE"


def test_an_id_of_a_run_that_is_under_way_is_refused_to_other_arguments(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=2)
    result = tasks.gated.delay(1)
    effects.wait_until_blocked("gated")

    tasks.gated.apply_async((2,), task_id=result.id)

    eventually(lambda: f"task {result.id} refused" in worker.log())
    effects.release("gated")
    assert result.get(timeout=20) == "gated 1"
    assert effects.count("before") == 1


# -- calls that can never work


@pytest.mark.parametrize("task", [tasks.calls, tasks.calls_async], ids=["sync", "async"])
def test_a_call_that_can_never_work_ends_the_run(durable: DurableSetup, worker: Worker, task: Any) -> None:
    expected = {
        "coroutine": ["step 'fetch'", "coroutine", 'ctx.run("fetch", later, ...)'],
        "result": ["step 'fetch'", "callable", "'already called'"],
        "none": ["step 'fetch'", "callable", "None"],
        "no name": ['ctx.run("act", act, ...)'],
        "lambda as name": ["name", "lambda"],
        "number as name": ["name", "7"],
        "too many": ["step 'fetch'", "act", "too many positional arguments"],
        "unknown keyword": ["step 'fetch'", "act", "colour"],
        "stray option": ["step 'fetch'", "max_attempts", "RunOptions(max_attempts=...)"],
        "too few": ["step 'fetch'", "produce", "'kind'"],
    }
    assert set(expected) == set(tasks.CALLS)
    results = {kind: task.delay(kind) for kind in expected}

    for kind, words in expected.items():
        refused(worker, results[kind], InvalidStepError, results[kind].id, *words)
        assert step_names(durable, results[kind].id) == ["before"]
    assert effects.count("before") == len(expected)
    assert effects.count("fetch") == effects.count("later") == effects.count("swallowed") == 0
    assert "was never awaited" not in worker.log()


def test_arguments_that_do_not_fit_the_task_fail_at_once(durable: DurableSetup, worker: Worker) -> None:
    expected: list[tuple[tuple[Any, ...], dict[str, Any], list[str]]] = [
        ((), {}, ["missing", "'number'"]),
        ((1, 2), {}, ["too many positional arguments"]),
        ((1,), {"size": 3}, ["unexpected keyword argument", "'size'"]),
        ((), {"number": 1, "ctx": 2}, ["unexpected keyword argument", "'ctx'"]),
    ]
    # As from another service: `delay()` would refuse them where they are written.
    results = [durable.app.send_task(tasks.typed.name, args, kwargs) for args, kwargs, _ in expected]

    for result, (*_, words) in zip(results, expected, strict=True):
        refused(worker, result, TypeError, *words)
    assert effects.count("never") == 0


def test_an_argument_that_pydantic_refuses_fails_at_once(durable: DurableSetup, worker: Worker) -> None:
    result = durable.app.send_task(tasks.validated.name, [{"sku": "a", "amount": "many"}])

    refused(worker, result, TerminalError, "amount", "valid integer")

    with pytest.raises(TerminalError) as caught:
        result.get()
    assert caught.value.status_code == 400
    assert effects.count("never") == 0


# -- the context where it must not be used


@pytest.mark.parametrize("way", ["sync", "async", "thread", "swallowed"])
def test_the_context_inside_a_step_of_a_sync_task_ends_the_run(durable: DurableSetup, worker: Worker, way: str) -> None:
    results = {verb: tasks.nested.delay(verb, way) for verb in tasks.VERBS}
    where = "another thread" if way == "thread" else "step 'outer'"

    for result in results.values():
        refused(worker, result, ContextInStepError, result.id, where, "current_step()")
        assert step_names(durable, result.id) == ["before"]
        assert [effects.count(name, result.id) for name in ("before", "outer", "inner", "after")] == [1, 1, 0, 0]
    assert effects.count("swallowed") == 0


@pytest.mark.parametrize("way", ["async", "task", "thread", "swallowed"])
def test_the_context_inside_a_step_of_an_async_task_ends_the_run(
    durable: DurableSetup, worker: Worker, way: str
) -> None:
    result = tasks.nested_async.delay(way)

    refused(worker, result, ContextInStepError, result.id, "'outer'", "current_step()")

    assert step_names(durable, result.id) == ["before"]
    assert [effects.count(name, result.id) for name in ("before", "inner", "after")] == [1, 0, 0]


def test_attributes_of_the_context_stay_readable_inside_a_step(durable: DurableSetup, worker: Worker) -> None:
    result = tasks.reads.delay()

    assert result.get(timeout=20) == [result.id, 1, False, tasks.reads.name, result.id]


def test_the_context_of_a_task_that_has_ended_is_closed(durable: DurableSetup, worker: Worker) -> None:
    effects.release("keeps")
    kept = tasks.keeps.delay()
    kept.get(timeout=20)
    wait_until_delivered(durable, kept.id)
    before = journal(durable.redis, kept.id)

    results = [tasks.plain_that_uses_a_kept_one.delay(verb) for verb in tasks.VERBS]
    results += [tasks.uses_a_kept_one.delay(verb, "body") for verb in tasks.VERBS]

    for result in results:
        refused(worker, result, ContextClosedError, kept.id, "ended")
    assert journal(durable.redis, kept.id) == before
    assert effects.count("inner") == 0


def test_the_context_of_another_task_inside_a_step_ends_the_run_of_that_step(durable: DurableSetup) -> None:
    worker = durable.start_worker(pool="threads", concurrency=2)
    kept = tasks.keeps.delay()
    effects.wait_until_blocked("keeps")

    results = [tasks.uses_a_kept_one.delay(verb, "step") for verb in tasks.VERBS]

    for result in results:
        refused(worker, result, ContextInStepError, result.id, "'outer'")
    effects.release("keeps")
    assert kept.get(timeout=20) == "went on"
    assert [effects.count(name) for name in ("keeps", "goes on", "inner")] == [1, 1, 0]
    assert step_names(durable, kept.id) == ["keeps", "goes on"]


def test_a_current_step_outside_of_a_step_is_an_error_that_says_where_it_is_known() -> None:
    with pytest.raises(ContextClosedError, match=r"ctx\.run"):
        tasks.act()
