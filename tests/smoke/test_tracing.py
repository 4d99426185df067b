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


def all_spans() -> list[dict[str, Any]]:
    return [json.loads(hit.key) for hit in effects.hits("span")]


def spans(name: str) -> list[dict[str, Any]]:
    return [span for span in all_spans() if span["name"] == name]


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
    """000:71-86: a span that a step opens is a child of the step's span, that of the attempt's, that of the task's."""
    durable.start_worker()
    getattr(tracing, task).apply_async(headers=SENDER).get(timeout=LONG)

    tasks = {span["id"] for span in spans_of_attempts(task)}
    spans_of_library = spans(f"attempt/tests.smoke.apps.tracing.{task}")
    assert [span["celery_durable.attempt"] for span in spans_of_library] == [1, 2, 3, 4]
    assert {span["parent"] for span in spans_of_library} == tasks
    attempts = {span["id"] for span in spans_of_library}
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


EVENTFUL = "tests.smoke.apps.tracing.eventful"
HISTORY = [
    ("attempt", 1, "SUSPENDED"),
    ("wait/sleep", 1, None),
    ("attempt", 2, "RETRY"),
    ("wait/retry", 2, None),
    ("lost", 3, None),
    ("attempt", 4, "SUCCESS"),
]
"""What a trace shows of this task: which span, of which attempt, and how that has ended."""


def test_one_trace_shows_all_attempts_the_waits_and_the_lost_process(durable: DurableSetup) -> None:
    """Without an instrumentation of Celery. The sender has a trace, or the first attempt begins it."""
    durable.start_worker(env={"WITHOUT_INSTRUMENTATION": "1"})
    of_sender, of_nobody = tracing.eventful.apply_async(headers=SENDER), tracing.eventful.delay()

    assert of_sender.get(timeout=LONG) == [TRACE] * 4
    own, *others = of_nobody.get(timeout=LONG)
    assert int(own, 16)
    assert others == [own] * 3
    eventually(lambda: len(spans(f"attempt/{EVENTFUL}")) == 6, what="the spans of the attempts that were not lost")
    for result, trace in ((of_sender, TRACE), (of_nobody, own)):
        seen = [span for span in all_spans() if span.get("celery_durable.task_id") == result.id]
        assert {span["trace"] for span in seen} == {trace}
        history = [span for span in seen if "celery_durable.attempt" in span]
        history.sort(key=lambda span: (span["celery_durable.attempt"], span["began"]))
        assert [
            (
                span["name"].removesuffix(f"/{EVENTFUL}"),
                span["celery_durable.attempt"],
                span.get("celery_durable.end"),
            )
            for span in history
        ] == HISTORY
        first, slept, *_ = history
        assert first["began"] < slept["began"] < first["ended"] + 10**9
        assert slept["ended"] - slept["began"] >= 0.05 * 10**9


def test_without_a_trace_there_are_no_spans_of_steps_and_no_errors(durable: DurableSetup) -> None:
    """A process that records nothing is left alone."""
    durable.start_worker(env={"OTEL_SDK_DISABLED": "true"})

    assert tracing.in_a_def_task.delay().get(timeout=LONG) == ["0" * 32] * 3
    assert not effects.hits("span")
