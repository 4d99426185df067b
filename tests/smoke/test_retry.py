"""Retry from Flower, by its HTTP API: an unmodified `celery flower` sends a failed run again, which then goes on."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery, chain
from celery.result import AsyncResult

from celery_durable import RetriesExhausted, RunNotRetryableError, TerminalError
from tests.smoke import effects
from tests.smoke.apps import flower as tasks
from tests.smoke.flower import RETRY, Flower
from tests.smoke.nodes import BROKER_DB, DurableSetup
from tests.smoke.watching import entries, journal, outcome, wait_until_delivered
from tests.waiting import eventually


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.flower"


def result_of(app: Celery, task_id: str) -> AsyncResult:
    """Return a result that has not been looked at: one that has keeps the FAILURE that it saw."""
    return AsyncResult(task_id, app=app)


def failed(result: AsyncResult, kind: type[BaseException] = ConnectionError) -> str:
    """Wait until the task has failed; return its id."""
    with pytest.raises(kind):
        result.get(timeout=20)
    return result.id


def retried(app: Celery, task_id: str) -> dict[str, Any]:
    """Retry a run without Flower; return what the retry task says."""
    return app.tasks[RETRY].delay(task_id).get(timeout=20)


def steps(durable: DurableSetup, task_id: str) -> list[str]:
    return [f"{entry['name']} {entry['state']}" for entry in entries(durable.redis, task_id)]


# -- what goes on, and from where


def test_flower_retries_a_failed_run_which_goes_on_where_it_stopped(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    task_id = failed(tasks.order.delay(7))
    key = journal(durable.redis, task_id)["uuid:1"]
    assert [effects.count(name, task_id) for name in ("reserve", "charge", "ship")] == [1, 1, 0]

    retry_id = flower.retry(task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert outcome(durable, task_id) == {"number": 7, "key": key}
    assert result_of(durable.app, retry_id).get(timeout=10)["task_id"] == task_id
    assert [effects.count(name, task_id) for name in ("reserve", "charge", "ship")] == [1, 2, 1]
    assert steps(durable, task_id) == ["reserve done", "charge done", "ship done"]
    assert effects.count("charge.key") == effects.count("charge.key", effects.hits("charge.key")[0].key) == 2


def test_a_flower_that_knows_only_the_broker_retries_by_send_task(
    durable: DurableSetup, start_flower: Callable[..., Flower]
) -> None:
    durable.start_worker()
    task_id = failed(tasks.order.delay(7))

    retry_id = start_flower(with_app=False).retry(task_id, by="send-task")

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert [effects.count(name, task_id) for name in ("reserve", "charge", "ship")] == [1, 2, 1]
    assert result_of(durable.app, retry_id).get(timeout=10)["task"] == tasks.order.name


def test_a_step_whose_retries_are_spent_is_reopened_with_a_fresh_budget(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    task_id = failed(tasks.exhausting.delay(), RetriesExhausted)
    assert effects.count("charge", task_id) == 2
    assert steps(durable, task_id) == ["reserve done", "charge failed"]

    flower.retry(task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert effects.count("reserve", task_id) == 1
    assert effects.count("charge", task_id) == 4
    (key,) = {hit.key for hit in effects.hits("charge.key")}
    assert UUID(key).version == 4
    assert steps(durable, task_id) == ["reserve done", "charge done"]
    assert json.loads(journal(durable.redis, task_id)["step:2"])["attempts"] == 2


def test_a_step_that_failed_with_a_terminal_error_is_reopened(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    task_id = failed(tasks.declined.delay(), tasks.Declined)
    assert effects.count("charge", task_id) == 1

    flower.retry(task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert [effects.count(name, task_id) for name in ("reserve", "charge")] == [1, 2]
    assert len({hit.key for hit in effects.hits("charge.key")}) == 1


def test_a_body_that_ended_with_a_terminal_error_runs_again(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    task_id = failed(tasks.refused.delay(), TerminalError)

    flower.retry(task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert outcome(durable, task_id) == "in stock"
    assert [effects.count(name, task_id) for name in ("reserve", "body")] == [1, 2]


def test_a_failed_chain_goes_on_to_its_end(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    end = chain(tasks.order.s(7), tasks.follow.s("next"), tasks.follow.s("last")).apply_async()
    first = end.parent.parent.id
    failed(result_of(durable.app, first))
    assert effects.count("next") == 0

    flower.retry(first)

    # Celery had marked the tasks that were to follow as failed, too.
    eventually(lambda: result_of(durable.app, end.id).successful())
    assert outcome(durable, end.id).startswith("last after next after")
    assert [effects.count(name) for name in ("reserve", "charge", "ship", "next", "last")] == [1, 2, 1, 1, 1]


def test_a_plain_message_under_the_id_of_a_failed_run_retries_it_too(durable: DurableSetup) -> None:
    durable.start_worker()
    task_id = failed(tasks.order.delay(7))

    tasks.order.apply_async((7,), task_id=task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert [effects.count(name, task_id) for name in ("reserve", "charge", "ship")] == [1, 2, 1]


def test_a_run_may_fail_and_be_retried_again_and_again(durable: DurableSetup) -> None:
    durable.start_worker()
    task_id = failed(tasks.exhausting.delay(), RetriesExhausted)
    # The action fails three times, two executions per budget: the second budget suffices.
    retried(durable.app, task_id)
    eventually(lambda: result_of(durable.app, task_id).successful())

    with pytest.raises(RunNotRetryableError, match="SUCCESS"):
        retried(durable.app, task_id)

    assert effects.count("charge", task_id) == 4


def test_the_journal_of_a_failed_run_is_kept_for_its_retry(durable: DurableSetup) -> None:
    durable.start_worker()
    task_id = failed(tasks.order.delay(7))
    (key,) = durable.redis.keys(f"*:run:{task_id}")

    week = 7 * 24 * 3600
    kept = eventually(lambda: max(0, durable.redis.ttl(key)))  # from the moment on in which the failure is delivered
    assert week - 60 < kept <= week


# -- what cannot be retried


def test_a_run_that_is_under_way_is_not_retried(durable: DurableSetup) -> None:
    durable.start_worker()
    result = tasks.live.delay()
    effects.wait_until_blocked("work")

    with pytest.raises(RunNotRetryableError, match=f"{result.id}.*STARTED"):
        retried(durable.app, result.id)

    effects.release("work")
    assert result.get(timeout=20) == "work"
    assert effects.count("work") == 1


def test_a_run_that_waits_for_its_next_attempt_is_not_retried(durable: DurableSetup) -> None:
    durable.start_worker()
    result = tasks.suspended.delay()
    eventually(lambda: result.state == "RETRY")

    with pytest.raises(RunNotRetryableError, match=f"{result.id}.*RETRY"):
        retried(durable.app, result.id)

    assert effects.count("charge") == 1
    assert journal(durable.redis, result.id)["status"] == "suspended"


def test_a_run_that_has_succeeded_is_not_retried_and_flower_shows_the_reason(
    durable: DurableSetup, flower: Flower
) -> None:
    durable.start_worker(extra=["-E"])
    effects.release("work")
    result = tasks.live.delay()
    result.get(timeout=20)
    wait_until_delivered(durable, result.id)
    before = journal(durable.redis, result.id)

    retry_id = flower.retry(result.id)

    failed(result_of(durable.app, retry_id), RunNotRetryableError)
    info = eventually(lambda: flower.info(retry_id) if flower.info(retry_id).get("state") == "FAILURE" else None)
    assert "SUCCESS" in info["exception"]
    assert result.id in info["exception"]
    assert "SUCCESS" in flower.page(retry_id)
    assert effects.count("work") == 1
    assert journal(durable.redis, result.id) == before


def test_an_unknown_id_is_not_retried(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker()
    unknown = str(uuid4())

    retry_id = flower.retry(unknown)

    with pytest.raises(RunNotRetryableError, match=f"{unknown}.*no journal: is the id right"):
        result_of(durable.app, retry_id).get(timeout=20)
    assert not durable.redis.keys(f"*{unknown}")


def test_a_retry_task_that_fails_is_not_retried_itself(durable: DurableSetup) -> None:
    durable.start_worker()
    asked = durable.app.tasks[RETRY].delay("no-such-run")

    failed(asked, RunNotRetryableError)

    assert result_of(durable.app, asked.id).state == "FAILURE"


# -- what the retry task says, and what it sends


def test_the_retry_task_says_what_was_sent_and_where(durable: DurableSetup) -> None:
    durable.start_worker(queues=["celery", "named"])
    task_id = failed(tasks.routed.delay())

    said = retried(durable.app, task_id)

    assert said["task_id"] == task_id
    assert said["task"] == tasks.routed.name
    assert said["queue"] == "named"
    assert "restart" not in said["note"]
    eventually(lambda: result_of(durable.app, task_id).successful())


def test_headers_priority_queue_links_and_chain_survive(durable: DurableSetup) -> None:
    durable.start_worker(queues=["celery", "named"])
    first = tasks.described.si(1, two=2).set(headers={"tenant": "acme"}, priority=3, queue="named")
    first.link(tasks.follow.s("linked"))
    first.link_error(tasks.report.s())
    end = chain(first, tasks.follow.s("chained")).apply_async()
    task_id = failed(result_of(durable.app, end.parent.id))
    eventually(lambda: effects.count("reported", task_id) == 1)

    retried(durable.app, task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    assert outcome(durable, task_id) == {
        "args": [1],
        "kwargs": {"two": 2},
        "types": ["int"],
        "tenant": "acme",
        "priority": 3,
        "queue": "named",
        "root": task_id,
    }
    eventually(lambda: result_of(durable.app, end.id).successful())
    eventually(lambda: effects.count("linked", task_id) == 1)
    assert effects.count("chained", task_id) == 1
    assert effects.count("reported", task_id) == 1


def test_an_errback_hears_of_every_failure(durable: DurableSetup) -> None:
    durable.start_worker()
    result = tasks.compensated.apply_async(link_error=tasks.report.s())
    failed(result, RetriesExhausted)
    eventually(lambda: effects.count("reported", result.id) == 1)

    retried(durable.app, result.id)

    eventually(lambda: effects.count("reported", result.id) == 2)


def test_arguments_keep_their_types(durable: DurableSetup) -> None:
    durable.start_worker()
    at, customer = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), uuid4()
    result = tasks.priced.delay(tasks.Item(sku="a", amount=2), at, price=Decimal("9.90"), customer=customer)
    task_id = failed(result)

    retried(durable.app, task_id)

    eventually(lambda: result_of(durable.app, task_id).successful())
    expected = f"{tasks.Item(sku='a', amount=2)!r} {at.isoformat()} {Decimal('9.90')!r} {customer!r}"
    assert outcome(durable, task_id) == expected


def test_the_note_says_that_a_restart_is_needed_where_compensations_followed(
    durable: DurableSetup, flower: Flower
) -> None:
    durable.start_worker()
    task_id = failed(tasks.compensated.delay(), RetriesExhausted)

    retry_id = flower.retry(task_id)

    note = result_of(durable.app, retry_id).get(timeout=20)["note"]
    assert "charge" in note
    assert "restart" in note
    assert "restart the run from this step" in note
    eventually(lambda: [journal(durable.redis, task_id)[name] for name in ("attempt", "status")] == ["3", "failed"])
    # The recorded failure is replayed, and so is what undid the reservation.
    assert [effects.count(name, task_id) for name in ("reserve", "charge", "release")] == [1, 2, 1]
    with pytest.raises(RetriesExhausted):
        result_of(durable.app, task_id).get(timeout=20)


def test_two_retries_in_a_row_execute_the_rest_once(durable: DurableSetup) -> None:
    durable.start_worker(queues=["celery"])
    consumer = durable.start_worker(queues=["named"])
    end = chain(tasks.routed.s(), tasks.follow.s("next")).apply_async()
    task_id = failed(result_of(durable.app, end.parent.id))
    consumer.stop()

    # Nobody takes what the first one sends, so that the second one finds the run failed as well.
    assert retried(durable.app, task_id)["task_id"] == retried(durable.app, task_id)["task_id"] == task_id
    consumer.restart()

    eventually(lambda: result_of(durable.app, end.id).successful())
    assert outcome(durable, end.id) == "next after charge"
    eventually(lambda: consumer.log().count(f"[{task_id}] received") == 3)
    # The second one finds the run under way, or over.
    over = (
        f"task {task_id}: another attempt holds the lease; this message is forgotten",
        f"task {task_id} already finished",
    )
    eventually(lambda: any(text in consumer.log() for text in over))
    assert [effects.count(name) for name in ("reserve", "charge", "next")] == [1, 2, 1]
    # Celery sends the next task of a chain before it stores the result.
    eventually(lambda: result_of(durable.app, task_id).state == "SUCCESS", what="the result of the run")


# -- routing, and what Flower shows


@contextmanager
def workers_of_a_named_queue_only(durable: DurableSetup) -> Iterator[str]:
    """Yield the id of a failed run whose workers listen on the queue "named" and on no other."""
    durable.start_worker(queues=["named"])
    task_id = failed(tasks.routed.delay())
    yield task_id
    eventually(lambda: result_of(durable.app, task_id).successful())
    assert [effects.count(name, task_id) for name in ("reserve", "charge")] == [1, 2]
    with durable.broker_server.client(BROKER_DB) as broker:
        assert broker.llen("celery") == 0


def test_task_routes_bring_the_retry_task_to_workers_of_a_named_queue(
    durable: DurableSetup, start_flower: Callable[..., Flower]
) -> None:
    flower = start_flower(env={"RETRY_QUEUE": "named"})
    with workers_of_a_named_queue_only(durable) as task_id:
        flower.retry(task_id)


def test_a_request_may_name_the_queue_of_the_retry_task(
    durable: DurableSetup, start_flower: Callable[..., Flower]
) -> None:
    flower = start_flower(with_app=False)
    with workers_of_a_named_queue_only(durable) as task_id:
        flower.retry(task_id, by="send-task", queue="named")


def test_flower_shows_the_state_of_the_run_before_and_after(durable: DurableSetup, flower: Flower) -> None:
    durable.start_worker(extra=["-E"])
    task_id = failed(tasks.order.delay(7))
    page = eventually(lambda: flower.page(task_id) if "FAILURE" in flower.page(task_id) else "")
    assert "gateway away" in page
    assert tasks.order.name in page

    flower.retry(task_id)

    page = eventually(lambda: flower.page(task_id) if "SUCCESS" in flower.page(task_id) else "")
    assert "FAILURE" not in page
    assert tasks.order.name in page
