"""Chains, groups, chords and links with durable members that fail and are retried: Celery's canvas notices nothing."""

import pytest
from celery import chain, chord, group
from celery.canvas import Signature

from celery_durable import RetriesExhausted, TerminalError
from tests.smoke import effects
from tests.smoke.apps.canvas import (
    add,
    double,
    exhausted,
    increment,
    linked,
    on_error,
    plain,
    refuse,
    replaced,
    sends_from_a_step,
    total,
)
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import wait_until_idle
from tests.waiting import eventually

LONG = 30
"""Seconds for a canvas whose members are retried, on a busy machine."""


pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.canvas"


def test_a_chain_of_retried_members_passes_each_result_on_once() -> None:
    result = chain(add.s(1, 2), double.s(), increment.s(), plain.s(), add.s(10)).delay()

    assert result.get(timeout=LONG) == 17
    assert effects.executions("add") == [3, 3]
    assert effects.executions("double") == [2]
    assert effects.executions("increment") == [2]
    assert effects.executions("plain") == [1]
    assert effects.executions("add attempts") == [4, 4]


def test_a_group_of_retried_members_gives_all_results_in_order() -> None:
    result = group(add.s(number, number) for number in range(5)).delay()

    assert result.get(timeout=LONG) == [0, 2, 4, 6, 8]
    assert effects.executions("add") == [3] * 5


CHORDS = {
    "durable header, durable body": (lambda: chord([add.s(1, 1), double.s(2), increment.s(2)], total.s()), 9),
    "durable header, plain body": (lambda: chord([add.s(1, 1), double.s(2)], plain.s()), [2, 4]),
    "plain header, durable body": (lambda: chord([plain.s(1), plain.s(2)], total.s()), 3),
    "one member": (lambda: chord([add.s(1, 1)], total.s()), 2),
    "chains in the header": (lambda: chord([chain(add.s(1, 1), double.s()), double.s(3)], total.s()), 10),
    "a chord behind a chain": (lambda: chain(add.s(1, 1), group(double.s(), increment.s()), total.s()), 7),
    "a group behind a group": (lambda: chain(group(double.s(1), double.s(2)), total.s(), double.s()), 12),
}


@pytest.mark.parametrize("shape", CHORDS)
def test_the_body_of_a_chord_runs_once_with_all_results(durable: DurableSetup, shape: str) -> None:
    make, expected = CHORDS[shape]

    result = make().delay()

    assert result.get(timeout=LONG) == expected
    wait_until_idle(durable)
    assert effects.executions("total") in ([2], []), "once, failing once before"
    assert set(effects.executions("add")) <= {3}
    assert set(effects.executions("double")) <= {2}


def test_a_canvas_in_a_canvas(durable: DurableSetup) -> None:
    inner = chord([add.s(1, 1), chain(double.s(1), increment.s())], total.s())
    result = chain(inner, group(double.s(), add.s(1)), total.s(), plain.s()).delay()

    assert result.get(timeout=LONG) == 16
    wait_until_idle(durable)
    assert effects.executions("plain") == [1]
    assert effects.executions("total") == [2, 2]


def test_a_link_is_called_once_with_the_result(durable: DurableSetup) -> None:
    result = add.apply_async((2, 3), link=linked.s())

    assert result.get(timeout=LONG) == 5
    eventually(lambda: effects.count("linked for", 5))
    wait_until_idle(durable)
    assert effects.count("linked for", 5) == 1
    assert effects.count("linked", 5) == 2


@pytest.mark.parametrize(("failing", "error"), [(refuse, TerminalError), (exhausted, RetriesExhausted)])
def test_a_link_error_is_called_once_with_the_error(
    durable: DurableSetup, failing: Signature, error: type[TerminalError]
) -> None:
    result = failing.apply_async(link=linked.s(), link_error=on_error.s())

    with pytest.raises(error) as raised:
        result.get(timeout=LONG)
    eventually(lambda: effects.count("on_error"))
    wait_until_idle(durable)
    assert [hit.key for hit in effects.hits("on_error")] == [f"{result.id} {error.__name__} {raised.value}"]
    assert effects.count("linked for") == 0


def test_a_failed_member_stops_the_chain_with_its_error(durable: DurableSetup) -> None:
    failed = chain(add.s(1, 1), refuse.s(), plain.s()).apply_async(link_error=on_error.s())

    with pytest.raises(TerminalError, match="refused") as raised:
        failed.parent.get(timeout=LONG)
    assert (raised.value.status_code, raised.value.metadata) == (409, {"x": 1})
    eventually(lambda: effects.count("on_error"))
    wait_until_idle(durable)
    assert effects.count("on_error") == 1
    assert effects.count("plain") == 0
    assert effects.executions("refuse") == [1]


def test_a_failed_member_of_a_header_fails_the_chord_once(durable: DurableSetup) -> None:
    body = total.s().on_error(on_error.s())
    result = chord([add.s(1, 1), exhausted.s(), double.s(1)], body).delay()

    with pytest.raises(Exception, match="step 'exhausted' failed 4 times"):
        result.get(timeout=LONG)
    wait_until_idle(durable)
    assert effects.executions("exhausted") == [4]
    assert effects.count("total") == 0
    assert effects.count("on_error") == 1


def test_a_durable_task_may_be_replaced_by_a_canvas() -> None:
    """The replacing task has the id of the replaced one, and a journal of its own making."""
    assert replaced.delay(5).get(timeout=LONG) == 22
    assert effects.executions("prepare") == [2]
    assert effects.executions("add") == [3]


def test_a_plain_task_sent_from_a_step_has_one_id_however_often_the_step_ran(durable: DurableSetup) -> None:
    key = sends_from_a_step.delay(7).get(timeout=LONG)

    assert durable.app.AsyncResult(key).get(timeout=LONG) == 7
    assert effects.count("send") == 2
