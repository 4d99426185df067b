"""OpenTelemetry: steps are spans with their names (001:279-289), traces go on inside steps and through every attempt.

Seed 000:71-107 (context propagation), seed 000:47-49 and 001:245 (names in the observability tools).
"""

import json
from typing import Any

import pytest

from celery_durable import TerminalError
from tests.smoke import effects
from tests.smoke.apps import tracing
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import outcome
from tests.waiting import eventually

LONG = 20
"""Seconds for a run with a few retries, on a busy machine."""

TRACE = "0af7651916cd43dd8448eb211c80319c"
SENDER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
"""The trace and the span of the sender, as a W3C header."""

TASKS = ["in_a_def_task", "in_an_async_task", "on_the_base_class"]


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.tracing"


def spans(name: str) -> list[dict[str, Any]]:
    found = [json.loads(hit.key) for hit in effects.hits("span")]
    return [span for span in found if span["name"] == name]


def spans_of_attempts(task: str) -> list[dict[str, Any]]:
    """Those of three steps, each of which failed once; the last one ends after the result has been sent."""
    name = f"run {task}"
    eventually(lambda: len(spans(name)) == 4, what=f"four spans {name!r}")
    return spans(name)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize("task", TASKS)
def test_each_execution_of_a_step_is_a_span_of_the_senders_trace(durable: DurableSetup, task: str, pool: str) -> None:
    """001:279-289, 000:71-86."""
    durable.start_worker(pool=pool)
    result = getattr(tracing, task).apply_async(headers=SENDER)

    assert result.get(timeout=LONG) == [TRACE] * 3
    for name in ("sync", "async", "without options"):
        executions = spans(name)
        assert [span["celery_durable.execution"] for span in executions] == [1, 2]
        assert [span["ok"] for span in executions] == [False, True]
        assert {span["celery_durable.task_id"] for span in executions} == {result.id}
        assert {span["trace"] for span in executions} == {TRACE}


@pytest.mark.parametrize("task", TASKS)
def test_the_context_of_a_trace_is_visible_inside_steps(durable: DurableSetup, task: str) -> None:
    """000:71-86: a span that a step opens is a child of the step's span, that of the task's."""
    durable.start_worker()
    getattr(tracing, task).apply_async(headers=SENDER).get(timeout=LONG)

    attempts = {span["id"] for span in spans_of_attempts(task)}
    for name in ("sync", "async", "without options"):
        executions = {span["id"]: span for span in spans(name)}
        inner = spans(f"inside {name}")
        assert [executions[span["parent"]]["celery_durable.execution"] for span in inner] == [1, 2]
        assert all(span["parent"] in attempts for span in executions.values())


@pytest.mark.parametrize("task", TASKS)
def test_the_trace_of_the_sender_goes_on_through_every_attempt(durable: DurableSetup, task: str) -> None:
    """000:107."""
    durable.start_worker()
    getattr(tracing, task).apply_async(headers=SENDER).get(timeout=LONG)

    attempts = spans_of_attempts(task)
    assert {span["trace"] for span in attempts} == {TRACE}
    assert attempts[0]["parent"] == "b7ad6b7169203331"


def test_the_trace_goes_on_when_a_failed_run_is_retried(durable: DurableSetup) -> None:
    """000:107: by `celery_durable.retry`, sent from outside of any trace."""
    durable.start_worker()
    result = tracing.failing.apply_async(headers=SENDER)
    with pytest.raises(TerminalError):
        result.get(timeout=LONG)
    result.forget()
    sent = durable.app.tasks["celery_durable.retry"].delay(result.id)

    assert sent.get(timeout=LONG)["task_id"] == result.id
    assert outcome(durable, result.id, LONG) == TRACE
    assert [hit.key for hit in effects.hits("failing")] == [TRACE] * 2


def test_the_trace_of_the_first_attempt_goes_on_where_the_sender_had_none(durable: DurableSetup) -> None:
    durable.start_worker()
    first, *others = tracing.sleeping.delay().get(timeout=LONG)

    assert first != "0" * 32
    assert others == [first, first]
    eventually(lambda: len(spans("run sleeping")) == 2, what="the spans of two attempts")
    assert {span["trace"] for span in spans("run sleeping")} == {first}


def test_without_a_trace_there_are_no_spans_of_steps_and_no_errors(durable: DurableSetup) -> None:
    """A process that records nothing is left alone."""
    durable.start_worker(env={"OTEL_SDK_DISABLED": "true"})

    assert tracing.in_a_def_task.delay().get(timeout=LONG) == ["0" * 32] * 3
    assert not effects.hits("span")
