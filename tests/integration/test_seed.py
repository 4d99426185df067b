"""The seed of a run is drawn where its task is sent, and travels in every message of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery, chord, group
from celery.beat import ScheduleEntry, Scheduler

from celery_durable import DurableTask, RunOptions, current_step
from celery_durable.app.store import store_of
from celery_durable.delivery.call import Call
from celery_durable.delivery.message import HEADER, SEED
from tests.integration.runs import app_at, deliver, execute, new_id, saved_call, sent, task_of
from tests.servers import free_port

pytestmark = pytest.mark.usefixtures("empty_broker")

NAME = "celery_durable.retry"

RETRIED = RunOptions(initial_retry_interval=0.01)


def work(self: Any) -> None:
    """Do nothing."""


def plain() -> None:
    """Do nothing, without a context."""


def charges(self: Any) -> list[str]:
    """Fail once, behind a step."""
    drawn = [str(self.ctx.run("charge", lambda: current_step().idempotency_key)), str(self.ctx.uuid())]
    self.drawn.append(drawn)

    def fail_once() -> None:
        if len(self.drawn) == 1:
            raise ConnectionError

    self.ctx.run("ship", fail_once, RETRIED)
    return drawn


def fails(self: Any) -> None:
    def fail() -> None:
        raise ConnectionError

    self.ctx.run("charge", fail)


def retries_itself(self: Any) -> list[str]:
    drawn = [str(self.ctx.run("charge", lambda: current_step().idempotency_key)), str(self.ctx.uuid())]
    self.drawn.append(drawn)
    if len(self.drawn) == 1:
        raise self.retry(countdown=0, **self.options)
    return drawn


def seeds(app: Celery) -> list[str]:
    found = []
    for message in sent(app):
        seed, _, run = message.headers[SEED].partition(":")
        assert run == f"0:{message.headers['id']}"
        found.append(seed)
    return found


def by_beat(app: Celery, task: Any) -> None:
    Scheduler(app, lazy=True).apply_async(ScheduleEntry("nightly", task.name, schedule=1, app=app), advance=False)


@pytest.mark.parametrize(
    "send",
    [
        lambda _, task: task.delay(),
        lambda _, task: task.apply_async(headers={"colour": "red"}),
        lambda app, task: app.send_task(task.name),
        lambda _, task: task.s().set(countdown=1).delay(),
        by_beat,
    ],
    ids=["delay", "apply_async", "send_task", "signature", "beat"],
)
def test_whoever_sends_the_task_draws_the_seed(app: Celery, send: Callable[[Celery, Any], Any]) -> None:
    task = task_of(app, work)
    send(app, task)

    [seed] = seeds(app)
    assert len(seed) == 32


def test_what_is_sent_twice_has_two_seeds(app: Celery) -> None:
    task = task_of(app, work)
    signature = task.s()
    signature.delay()
    signature.delay()
    task.apply_async(task_id="same")
    task.apply_async(task_id="same")
    group([signature, signature]).delay()
    chord([signature], task.si()).apply_async()

    assert len(set(seeds(app))) == 7


def test_a_task_of_another_class_has_none(app: Celery) -> None:
    app.task(shared=False, name="shop.never_durable")(plain).delay()

    [message] = sent(app)
    assert SEED not in message.headers


def test_a_class_without_a_name_has_one(app: Celery) -> None:
    class Nameless(DurableTask):
        def run(self) -> None:
            """Do nothing."""

    app.register_task(Nameless()).delay()

    assert len(seeds(app)) == 1


def test_the_first_protocol_carries_it_too(app: Celery) -> None:
    app.conf.task_protocol = 1
    task_of(app, work).apply_async(task_id="a")

    [message] = sent(app)
    assert message.headers[SEED].endswith(":0:a")


@pytest.mark.parametrize("ours", [{}, {HEADER: {"retries": 1}}], ids=["first", "retried"])
def test_headers_that_are_copied_into_another_message_say_nothing_there(app: Celery, ours: dict[str, Any]) -> None:
    task = task_of(app, work)
    copied = {SEED: "5eed:0:relay", "colour": "red", **ours}
    task.apply_async(task_id="a", headers=copied)

    [message] = sent(app)
    assert "5eed" not in message.headers[SEED]
    assert message.headers["colour"] == "red"
    assert HEADER not in message.headers


def test_a_replacement_is_a_run_of_its_own(app: Celery) -> None:
    task = task_of(app, work)
    task.apply_async(task_id="a", headers={SEED: "5eed:0:a"}, replaced_task_nesting=1)

    [message] = sent(app)
    assert message.headers[SEED].endswith(":1:a")
    assert "5eed" not in message.headers[SEED]


def test_a_new_run_takes_the_seed_of_its_message(app: Celery, redis_client: redis.Redis) -> None:
    task = task_of(app, charges)
    task.drawn = []
    task.apply_async(task_id=(task_id := new_id()))
    [message] = sent(app)

    deliver(task, message)

    assert redis_client.hget(store_of(app).keys(task_id).run, "seed") == message.headers[SEED][:32]
    assert SEED not in saved_call(task, redis_client, task_id).options["headers"]


@pytest.mark.parametrize("ours", [True, False], ids=["sent by us", "sent by others"])
def test_a_run_whose_journal_was_lost_keeps_its_keys(app: Celery, redis_client: redis.Redis, ours: bool) -> None:
    task, task_id = task_of(app, charges), new_id()
    task.drawn = []
    if ours:
        task.apply_async(task_id=task_id)
        assert deliver(task, sent(app)[0]) == "RETRY"
    else:
        assert execute(task, task_id=task_id) == "RETRY"
    redis_client.flushdb()
    [retry] = sent(app)

    assert deliver(task, retry) == "SUCCESS"
    first, second = task.drawn
    assert first == second


def test_a_copy_of_the_first_message_begins_the_run_again_with_its_keys(app: Celery, redis_client: redis.Redis) -> None:
    task = task_of(app, charges)
    task.drawn = []
    task.delay()
    [message] = sent(app)
    deliver(task, message)
    redis_client.flushdb()

    assert deliver(task, message, delivery_info={"redelivered": True}) == "SUCCESS"
    first, second = task.drawn
    assert first == second


@pytest.mark.parametrize("options", [{}, {"headers": {"size": "L"}}, {"headers": None}, {"kwargs": {}}], ids=repr)
def test_a_retry_of_the_users_carries_the_seed(app: Celery, redis_client: redis.Redis, options: dict[str, Any]) -> None:
    task = task_of(app, retries_itself)
    task.drawn, task.options = [], options
    task.delay()
    assert deliver(task, sent(app)[0]) == "RETRY"
    redis_client.flushdb()
    [retry] = sent(app)

    assert deliver(task, retry) == "SUCCESS"
    first, second = task.drawn
    assert first == second


def test_a_retry_from_outside_carries_the_seed_of_the_journal(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = task_of(app, fails), new_id()
    assert execute(task, task_id=task_id) == "FAILURE"
    seed = redis_client.hget(store_of(app).keys(task_id).run, "seed")

    app.tasks[NAME].apply((task_id,)).get()

    assert seeds(app) == [seed]


def test_a_reopened_run_keeps_the_seed_of_its_journal(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = task_of(app, fails), new_id()
    for _ in range(2):
        task.apply_async(task_id=task_id)
    first, again = sent(app)

    assert [deliver(task, first), deliver(task, again)] == ["FAILURE", "FAILURE"]
    kept = redis_client.hgetall(store_of(app).keys(task_id).run)
    assert (kept["attempt"], kept["seed"]) == ("2", first.headers[SEED][:32])


def test_what_recovery_sends_draws_none(app: Celery) -> None:
    task = task_of(app, work)
    Call([], {}, {"task_id": "a"}).send(app, task.name, {"hint": 1})

    [message] = sent(app)
    assert SEED not in message.headers


def test_a_task_that_does_not_touch_its_context_begins_no_run_for_its_seed() -> None:
    with app_at(f"redis://127.0.0.1:{free_port()}/0", durable_lease=1) as app:
        task = task_of(app, work)
        task.delay()
        assert deliver(task, sent(app)[0]) == "SUCCESS"


def test_a_task_that_makes_no_use_of_it_does_not_see_it(app: Celery) -> None:
    def looks(self: Any) -> None:
        self.seen = self.request.headers

    task = task_of(app, looks)
    task.delay()
    deliver(task, sent(app)[0])

    assert task.seen is None


def test_a_task_that_calls_itself_as_a_function_keeps_its_seed(app: Celery, redis_client: redis.Redis) -> None:
    def fails_after_a_call(self: Any, *, outer: bool = True) -> None:
        self.ctx.run("charge", lambda: 1)
        if outer:
            self(outer=False)
            raise self.retry(countdown=0)

    task, task_id = task_of(app, fails_after_a_call), new_id()
    task.apply_async(task_id=task_id)
    deliver(task, sent(app)[0])

    assert seeds(app) == [redis_client.hget(store_of(app).keys(task_id).run, "seed")]
