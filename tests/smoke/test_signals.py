"""Signals and events of runs in real workers: each is sent once, and what dies in between sends none."""

from collections import Counter
from collections.abc import Iterator

import pytest
from celery.result import AsyncResult

from celery_durable import cancel
from tests.smoke import effects
from tests.smoke.apps import signals
from tests.smoke.monitor import Monitor
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import elapse, run_key, wait_until_suspended
from tests.waiting import eventually

pytestmark = pytest.mark.local_nodes(reason="the monitor runs in this process")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.signals"


def signalled(result: AsyncResult) -> list[str]:
    """Return the signals of a run, in their order, each with the name of the step."""
    return [hit.key.partition(" ")[2] for hit in effects.hits("signal") if hit.key.startswith(result.id)]


def wait_for_signals(result: AsyncResult, *expected: str) -> None:
    eventually(lambda: signalled(result)[-len(expected) :] == [*expected], 20, what=f"the signals {expected}")


def wait_for_event(monitor: Monitor, result: AsyncResult, last: str) -> None:
    eventually(lambda: published(monitor, result)[-1:] == [last], 20, what=f"the event {last}")


def published(monitor: Monitor, result: AsyncResult) -> list[str]:
    """Return the events of a run as the signals that they are twins of."""
    return list(_published(monitor, result))


def _published(monitor: Monitor, result: AsyncResult) -> Iterator[str]:
    for event in monitor.of("durable"):
        if event["uuid"] == result.id:
            name = event["type"].removeprefix("durable-").replace("-", "_")
            yield f"{name} {event['step']}" if "step" in event else name


def let_it_be_of_other_code(durable: DurableSetup, result: AsyncResult) -> None:
    """Rewrite the journal of a run as if another build had begun it, whose step has another name."""
    key = run_key(durable.redis, result.id)
    entry = durable.redis.hget(key, "step:1").replace("charge", "charge twice")
    durable.redis.hset(key, mapping={"build": "another one", "step:1": entry})


SOLD = ["run_started", "step_succeeded charge", "step_succeeded ship", "run_succeeded"]
ASLEEP = ["run_started", "step_succeeded charge", "run_suspended"]
ENDED: dict[str, list[str]] = {
    "sells": SOLD,
    "sells_async": ["run_started", "step_succeeded charge", "run_succeeded"],
    "flaky": ["run_started", "step_succeeded charge", "run_resumed", "step_succeeded ask", "run_succeeded"],
    "refused": ["run_started", "step_failed charge", "run_failed"],
    "endless": ["run_started", "run_failed"],
    "killed": ["run_started", "step_succeeded charge", "run_resumed", "step_succeeded die", "run_succeeded"],
    "poisoned": ["run_started", "run_resumed", "run_resumed", "run_parked", "run_failed"],
}
"""What becomes of the tasks that end by themselves."""


def test_every_happening_is_a_signal_and_an_event(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker(extra=["-E"])
    sleeper, cancelled, stalled, revoked = (signals.sleeps.delay() for _ in range(4))
    results = {name: getattr(signals, name).delay() for name in ENDED}
    wait_until_suspended(durable, sleeper.id, cancelled.id, stalled.id, revoked.id)
    for result in (sleeper, cancelled, stalled, revoked):
        wait_for_signals(result, *ASLEEP)

    let_it_be_of_other_code(durable, stalled)
    for result in (sleeper, stalled):
        elapse(durable, result.id)
    cancel(cancelled.id, app=durable.app)
    durable.app.control.revoke(revoked.id)
    wait_for_signals(stalled, "run_resumed", "run_stalled")
    durable.app.control.revoke(stalled.id)
    wait_for_signals(stalled, "run_cancelled")

    expected = {results[name]: ENDED[name] for name in ENDED}
    expected[sleeper] = [*ASLEEP, "run_resumed", "run_succeeded"]
    expected[cancelled] = [*ASLEEP, "run_resumed", "run_cancelled"]
    expected[revoked] = [*ASLEEP, "run_cancelled"]
    attempts = signalled(stalled).count("run_resumed")
    expected[stalled] = [*ASLEEP, *["run_resumed", "run_stalled"] * attempts, "run_cancelled"]
    for result, sent in expected.items():
        wait_for_signals(result, *sent)
        wait_for_event(monitor, result, sent[-1])
    for result, sent in expected.items():
        assert signalled(result) == sent
    # A process that is killed may have events that it has not sent yet.
    for result in (results.pop(name) for name in ("killed", "poisoned")):
        assert Counter(published(monitor, result)) <= Counter(expected.pop(result))
    for result, sent in expected.items():
        assert published(monitor, result) == sent
    charged = next(event for event in monitor.of("durable") if event["uuid"] == results["sells"].id and "step" in event)
    facts = {name: charged[name] for name in ("name", "state", "attempt", "step", "place", "executions")}
    assert facts == {
        "name": signals.sells.name, "state": "STARTED", "attempt": 1, "step": "charge", "place": "1", "executions": 1,
    }  # fmt: skip


def test_monitors_show_the_state_that_celery_tells(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker(extra=["-E"], pool="threads")
    result = signals.sells.delay()
    wait_for_event(monitor, result, SOLD[-1])

    assert published(monitor, result) == SOLD
    monitor.wait_for(result, "succeeded SUCCESS")
    assert monitor.history(result) == ["received RECEIVED", "started STARTED", "succeeded SUCCESS"]
