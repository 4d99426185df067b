"""Signals: who keeps something by thread is told of steps in other threads; observers, of what has become of steps."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, asdict, fields, replace
from datetime import timezone
from math import inf
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import celeryd_after_setup

from celery_durable import DurableContext, RunOptions, TerminalError, durable_task, happenings
from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.happenings import Happening
from celery_durable.interrupts import FailAttempt, RetryStep
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import Delivery, Opened
from celery_durable.operate.record_json import record_json
from celery_durable.records import StepRecord
from celery_durable.signals import (
    run_failed,
    run_started,
    run_succeeded,
    step_failed,
    step_postrun,
    step_prerun,
    step_succeeded,
)
from celery_durable.steps.attempt import Attempt
from celery_durable.worker import events, startup
from celery_durable.worker.events import Events
from tests.receivers import observed, receiver
from tests.unit.conftest import Action, Run
from tests.waiting import eventually

# -- threads that Celery does not know ---------------------------------------------------------------------------------


@contextmanager
def heard() -> Iterator[list[tuple[str, str, str, str, int]]]:
    """What receivers of both signals are told, and in which thread."""
    told: list[tuple[str, str, str, str, int]] = []

    def hear(signal: Any, sender: str, task_id: str, name: str, **_: Any) -> None:
        told.append((signal.name, sender, task_id, name, threading.get_ident()))

    for signal in (step_prerun, step_postrun):
        signal.connect(hear)
    try:
        yield told
    finally:
        for signal in (step_prerun, step_postrun):
            signal.disconnect(hear)


async def in_coroutine(run: Run, *steps: tuple[str, Any]) -> None:
    ctx = run.async_attempt()
    run.last.begin_here()
    for name, action in steps:
        await ctx.run(name, action, RunOptions(max_attempts=1))


def test_receivers_are_told_before_and_after_each_execution_in_its_thread(run: Run) -> None:
    async def on_loop() -> int:
        return threading.get_ident()

    ran: list[int] = []
    with heard() as told:
        asyncio.run(in_coroutine(run, ("sync", lambda: ran.append(threading.get_ident())), ("async", on_loop)))

    assert [fact[:4] for fact in told] == [
        (signal, "shop.checkout", "task-1", name)
        for name in ("sync", "async")
        for signal in ("step_prerun", "step_postrun")
    ]
    assert {fact[4] for fact in told[:2]} == {*ran} != {threading.get_ident()}
    assert {fact[4] for fact in told[2:]} == {threading.get_ident()}


def test_a_step_that_fails_is_told_of_and_a_replay_is_not(run: Run) -> None:
    fails = Action(TerminalError("no"))
    with heard() as told:
        for _ in range(2):
            with pytest.raises(TerminalError):
                asyncio.run(in_coroutine(run, ("pay", fails)))

    assert fails.executions == 1
    assert [fact[0] for fact in told] == ["step_prerun", "step_postrun"]


def test_a_receiver_that_fails_changes_nothing(run: Run) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    step_prerun.connect(fail)
    try:
        asyncio.run(in_coroutine(run, ("pay", Action("paid"))))
    finally:
        step_prerun.disconnect(fail)

    assert run.entry("step:1")["value"] == "paid"


def test_steps_in_the_thread_of_the_task_are_celerys_to_tell_of(run: Run) -> None:
    ctx: DurableContext = run.attempt()
    with heard() as told:
        ctx.run("pay", Action("paid"))

    assert told == []


# -- what has become of a step -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nobody_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happenings, "observers", {})


@pytest.fixture
def run() -> Run:
    """A run that has not begun, of a task with arguments."""
    return Run(request=Context(args=["o-1"], kwargs={"n": 2}))


def test_a_step_that_succeeds_is_told_of_once_with_its_records(run: Run) -> None:
    with receiver(step_succeeded) as heard:
        for _ in range(2):
            ctx = run.attempt()
            ctx.run("charge", Action({"id": "ch_1"}))
            ctx.run("ship", Action(None))

    charged, shipped = (call.kwargs for call in heard.call_args_list)
    assert (charged["sender"], charged["signal"]) == ("shop.checkout", step_succeeded)
    step = charged["step"]
    assert (step.kind, step.name, step.place, step.state, step.executions) == ("step", "charge", "1", "done", 1)
    entry = run.entry("step:1")
    assert (round(step.at.timestamp() * 1000), step.ms) == (entry["at"], entry["ms"])
    assert (step.preview, step.error, step.first) == ('{"id":"ch_1"}', "", None)
    told = charged["run"]
    assert (told.id, told.task, told.state, told.args, told.kwargs) == (
        "task-1", "shop.checkout", "STARTED", ["o-1"], {"n": 2},
    )  # fmt: skip
    assert (told.ended, told.steps, told.actions, [attempt.number for attempt in told.attempts]) == (None, (), (), [1])
    assert shipped["run"] is told
    assert shipped["step"].place == "2"


def test_the_record_of_a_step_is_one_like_any_other(run: Run) -> None:
    with receiver(step_succeeded) as heard:
        run.attempt().run("pay", Action(1), RunOptions(max_attempts=2))
    step = heard.call_args.kwargs["step"]

    def by_its_constructor() -> StepRecord:
        return StepRecord(**{one.name: getattr(step, one.name) for one in fields(StepRecord)})

    # Before anybody looks at its times.
    pickled, as_json = pickle.loads(pickle.dumps(step)), json.loads(record_json(step))  # noqa: S301
    assert by_its_constructor() == replace(step) == StepRecord(**asdict(step)) == pickled == step
    assert as_json == json.loads(record_json(by_its_constructor()))
    assert (repr(step), hash(step)) == (repr(by_its_constructor()), hash(by_its_constructor()))
    assert step.first.tzinfo is step.at.tzinfo is timezone.utc
    with pytest.raises(FrozenInstanceError):
        step.at = None


def test_it_is_recorded_before_it_is_told_of(run: Run) -> None:
    with receiver(step_succeeded) as heard:
        heard.side_effect = lambda **_: seen.append(run.entry("step:1")["state"])
        seen: list[str] = []
        run.attempt().run("pay", Action(1))

    assert seen == ["done"]


def test_a_step_has_failed_if_no_replay_will_execute_it(run: Run) -> None:
    fails, declines = Action(OSError("away")), Action(TerminalError("declined"))
    with receiver(step_failed) as failed, receiver(step_succeeded) as succeeded:
        for _ in range(2):
            ctx = run.attempt()
            with pytest.raises(TerminalError):
                ctx.run("pay", declines)
            with pytest.raises(FailAttempt):
                ctx.run("ask", fails)

    assert succeeded.call_args_list == []
    [call] = failed.call_args_list
    step = call.kwargs["step"]
    assert (step.name, step.state, step.executions, step.error) == ("pay", "failed", 1, "TerminalError: declined")


def test_a_step_whose_retries_are_exhausted_has_failed(run: Run) -> None:
    fails, options = Action(OSError("away")), RunOptions(max_attempts=2, initial_retry_interval=3600)
    with receiver(step_failed) as failed:
        with pytest.raises(RetryStep):
            run.attempt().run("ask", fails, options)
        assert failed.call_args_list == []
        with pytest.raises(TerminalError):
            run.attempt().run("ask", fails, options)

    [call] = failed.call_args_list
    assert (call.kwargs["step"].executions, call.kwargs["run"].attempts[0].number) == (2, 2)
    assert call.kwargs["step"].first is not None


def test_steps_of_an_async_task_are_told_of_on_its_loop(run: Run) -> None:
    with observed() as told:
        asyncio.run(in_coroutine(run, ("pay", Action("paid"))))

    assert [(happening, step.name) for happening, _, step in told] == [("step_succeeded", "pay")]


def test_where_nobody_listens_nothing_is_made(run: Run) -> None:
    run.attempt().run("pay", Action("paid"))

    assert happenings.observers == {}
    assert "shown_run" not in vars(run.last)


def test_who_listens_to_the_ends_of_runs_costs_their_steps_nothing(run: Run) -> None:
    with receiver(run_failed):
        run.attempt().run("pay", Action("paid"))

        assert happenings.observers.keys() == {"run_failed"}
    assert "shown_run" not in vars(run.last)


def test_who_listens_no_more_is_told_nothing(run: Run) -> None:
    with receiver(step_succeeded):
        pass
    with receiver(step_failed) as failed:
        run.attempt().run("pay", Action("paid"))
    assert failed.call_args_list == []


def test_a_receiver_of_one_task_hears_of_no_other(run: Run) -> None:
    heard: list[str] = []
    hear = step_succeeded.connect(sender="shop.other", weak=False)(lambda step, **_: heard.append(step.name))
    run.attempt().run("pay", Action("paid"))
    step_succeeded.disconnect(hear, sender="shop.other")

    assert heard == []


@pytest.mark.parametrize("how", ["receiver", "observer"])
def test_one_that_fails_is_logged_and_changes_nothing(run: Run, caplog: pytest.LogCaptureFixture, how: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    happenings.observe(fail)
    with receiver(step_succeeded) as heard, observed() as told:
        heard.side_effect = fail
        if how == "receiver":
            happenings.forget(fail)
        assert run.attempt().run("pay", Action("paid")) == "paid"

    assert len(told) == 1
    assert "ZeroDivisionError" in caplog.text
    assert run.entry("step:1")["value"] == "paid"


def test_a_time_limit_that_hits_a_receiver_is_the_tasks(run: Run) -> None:
    info = TaskInfo("task-1", "shop.checkout", run.request, limits=(SoftTimeLimitExceeded,))
    journal = MemoryJournal()
    opened = journal.open(Delivery("task-1", "shop.checkout", "", "{}"))
    assert isinstance(opened, Opened)
    ctx = DurableContext(Attempt(journal, opened, info, AttemptSettings.of(Settings(), build="")))
    with receiver(step_succeeded) as heard, observed() as told:
        heard.side_effect = SoftTimeLimitExceeded
        with pytest.raises(SoftTimeLimitExceeded):
            ctx.run("pay", Action("paid"))

    assert len(told) == 1
    assert b'"paid"' in journal.fields[b"step:1"]


@pytest.mark.parametrize("call", ["direct", "eager"])
@pytest.mark.usefixtures("app")
def test_of_a_run_that_its_caller_executes_nothing_is_told(app: Celery, call: str) -> None:
    @durable_task
    def pay(ctx: DurableContext) -> int:
        return ctx.run("pay", lambda: 7)

    with receiver(run_started) as started, receiver(run_succeeded) as succeeded, observed() as told:
        assert (pay() if call == "direct" else pay.apply().get()) == 7

    assert (started.call_args_list, succeeded.call_args_list, told) == ([], [], [])


def test_an_observer_is_told_once_however_often_it_registers(run: Run) -> None:
    with observed() as told:
        [note] = happenings.observers[Happening.STEP_SUCCEEDED]
        happenings.observe(note)
        run.attempt().run("pay", Action("paid"))

    assert len(told) == 1


# -- events ------------------------------------------------------------------------------------------------------------


def checkout(ctx: Any = None) -> None:
    """The body of a task."""


class Broker:
    """Stands for the dispatcher of an app: it keeps what is sent, while it is not away."""

    def __init__(self) -> None:
        self.messages: list[list[tuple[str, dict[str, Any]]]] = []
        self.away = False
        self.tries = 0
        self._some: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def default_dispatcher(self, hostname: str) -> Any:
        self.tries += 1
        if self.away:
            raise ConnectionError(hostname)
        yield self

    def send(self, kind: str, **facts: Any) -> None:
        self._some.append((kind, facts))

    def flush(self, *, errors: bool) -> None:
        self.messages.append(self._some)
        self._some = []

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        return [event for message in self.messages for event in message]


@pytest.fixture
def broker(app: Celery) -> Broker:
    app.events = broker = Broker()  # type: ignore[assignment]
    app.task(checkout, name="shop.checkout")
    return broker


@pytest.fixture
def events_sent(app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Events:
    """The observer that sends events, for as long as the test lasts."""
    monkeypatch.setattr(events, "_everywhere", {})
    events.send_events(app, "worker@shop")
    return events._everywhere[app]  # noqa: SLF001


def steps_of(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [facts["step"] for _, facts in events]


def test_a_happening_is_an_event(run: Run, broker: Broker, events_sent: Events) -> None:
    run.attempt().run("pay", Action("paid"))

    eventually(lambda: broker.sent, what="the event")
    [(kind, facts)] = broker.sent
    assert kind == "durable-step-succeeded"
    assert facts.pop("timestamp") > 0
    assert facts == {
        "uuid": "task-1", "name": "shop.checkout", "state": "STARTED", "attempt": 1,
        "step": "pay", "place": "1", "executions": 1, "ms": run.entry("step:1")["ms"],
    }  # fmt: skip


def test_a_restart_that_is_cancelled_before_anybody_has_begun_it_has_attempt_0(
    run: Run, broker: Broker, events_sent: Events
) -> None:
    run.attempt()
    happenings.tell(Happening.RUN_CANCELLED, replace(run.last.shown_run, state="REVOKED", attempts=()))

    eventually(lambda: broker.sent, what="the event")
    [(kind, facts)] = broker.sent
    assert (kind, facts["state"], facts["attempt"]) == ("durable-run-cancelled", "REVOKED", 0)


def test_events_wait_for_a_broker_that_is_away_and_then_travel_together(
    run: Run, broker: Broker, events_sent: Events, caplog: pytest.LogCaptureFixture
) -> None:
    broker.away, ctx, names = True, run.attempt(), ["a", "b", "c"]
    for name in names:
        ctx.run(name, Action(1))
    eventually(lambda: "events cannot be sent" in caplog.text, what="a line in the log")

    broker.away = False
    events_sent.say_farewell()

    assert steps_of(broker.sent) == names
    assert len(broker.messages) == 1


def test_a_broker_that_is_away_is_asked_again_after_a_pause_and_not_for_each_event(
    app: Celery, run: Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PAUSE", 3600)
    observer, broker.away = Events(app, "worker@shop"), True
    observer._rounds = rounds = Mock()  # noqa: SLF001  what its thread does is done here
    run.attempt()
    happening = (Happening.RUN_STARTED, run.last.shown_run, None)

    observer(*happening)
    next_try = observer._round()  # noqa: SLF001
    observer(*happening)
    assert observer._round() == next_try  # noqa: SLF001  as for an event that came while the first try went on

    assert broker.tries == 1
    assert [call.args for call in rounds.expect.call_args_list] == [(-inf,), (next_try,)]
    assert next_try > time.monotonic() + 3000


def test_who_says_farewell_does_not_wait_for_a_broker_that_is_away(
    run: Run, broker: Broker, events_sent: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LONGEST_FAREWELL", 0.01)
    broker.away = True
    run.attempt().run("pay", Action(1))

    events_sent.say_farewell()

    assert broker.sent == []


def test_while_it_is_away_so_many_events_are_kept(
    run: Run, broker: Broker, events_sent: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_MOST", 2)
    broker.away, ctx = True, run.attempt()
    for name in ("a", "b", "c"):
        ctx.run(name, Action(1))
    broker.away = False
    events_sent.say_farewell()

    assert steps_of(broker.sent) == ["a", "b"]


def test_a_forked_process_sends_nothing_of_its_parents(run: Run, broker: Broker, events_sent: Events) -> None:
    broker.away, ctx = True, run.attempt()
    ctx.run("of the parent", Action(1))

    events_sent.start_over()  # as after a fork
    broker.away = False
    ctx.run("its own", Action(1))

    eventually(lambda: broker.sent, what="the event")
    assert steps_of(broker.sent) == ["its own"]


@pytest.mark.parametrize("known", [True, False], ids=["send_events=False", "a task of another app"])
def test_a_task_may_have_no_events(app: Celery, run: Run, broker: Broker, events_sent: Events, known: bool) -> None:
    if known:
        app.tasks["shop.checkout"].send_events = False
    else:
        app.tasks.pop("shop.checkout")
    run.attempt().run("pay", Action("paid"))
    events_sent.say_farewell()

    assert broker.sent == []


@pytest.mark.parametrize(("task_events", "observers"), [(True, 1), (False, 0)], ids=["-E", "without"])
def test_a_worker_sends_events_where_those_of_tasks_are_on(
    app: Celery, monkeypatch: pytest.MonkeyPatch, task_events: bool, observers: int
) -> None:
    durable_task(name="shop.pay")(checkout)
    app.finalize()
    monkeypatch.setattr(startup, "risks_of", lambda *_: ())
    for _ in range(2):
        celeryd_after_setup.send("worker@shop", instance=Mock(app=app, task_events=task_events), conf=app.conf)

    assert len(happenings.observers.get(Happening.RUN_FAILED, ())) == observers


def test_what_has_no_signal_is_no_event(run: Run, broker: Broker, events_sent: Events) -> None:
    run.attempt()
    happenings.tell(Happening.ATTEMPT_ENDED, run.last.shown_run)
    events_sent.say_farewell()

    assert broker.sent == []
