"""What is watched of an attempt: silence is reported once, and what takes too long is struck, then left behind."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    DurableTimeoutError,
    RetriesExhausted,
    RunOptions,
    current_step,
    durable_task,
)
from celery_durable.drivers.interruption import Interruption, current_target
from celery_durable.drivers.pulse import Overrun
from celery_durable.drivers.watchdog import Watch, watchdog
from celery_durable.interrupts import FailAttempt, Interrupt, RetryStep
from celery_durable.rounds import Rounds
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.step import Step, make_step
from tests.unit.conftest import Run
from tests.waiting import eventually

FOR_EVER = 30.0
"""Seconds that no test waits for."""


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.silences: list[float] = []
        self.left: list[Overrun] = []

    def inactive(self, seconds: float) -> None:
        self.silences.append(seconds)

    def go_on_without(self, overrun: Overrun) -> None:
        self.left.append(overrun)


class Nowhere:
    """A place where strikes arrive, and land when the test says so."""

    def __init__(self) -> None:
        self.sent: list[Interruption] = []

    def send(self, interruption: Interruption) -> None:
        self.sent.append(interruption)


Context = DurableContext | AsyncDurableContext


def attempt_of(ctx: Context) -> Attempt:
    return ctx._attempt  # noqa: SLF001


class Watched:
    """An attempt under watch, at times that the test counts from its last progress."""

    def __init__(self, ctx: Context, place: Nowhere | None, inactivity: float, abort: float) -> None:
        self.attempt = attempt_of(ctx)
        self.owner = Owner()
        self.watch = Watch(self.attempt.pulse, self.owner, place, inactivity, abort)
        self.zero = self.attempt.pulse.progressed_at

    def look(self, later: float) -> float:
        """Look so many seconds later; return how many seconds later the next look is."""
        return self.watch.check(self.zero + later) - self.zero

    def begin_step(self, **options: Any) -> Step:
        """A step whose action runs."""
        step = make_step(self.attempt, "charge", time.sleep, (RunOptions(**options), 5), {})
        step.executions = 1
        if options:
            step.deadline = self.zero + options["timeout"]
        self.attempt.pulse.running.add(step)
        return step


@pytest.fixture
def place() -> Nowhere:
    return Nowhere()


def watched(run: Run, place: Nowhere | None = None, inactivity: float = 60, abort: float = 600) -> Watched:
    return Watched(run.attempt(), place, inactivity, abort)


# -- silence -----------------------------------------------------------------------------------------------------------


def test_a_silence_is_reported_once(run: Run) -> None:
    one = watched(run)
    assert one.look(59) == pytest.approx(60)
    assert one.owner.silences == []
    assert [one.look(later) for later in (61, 62, 600)] == pytest.approx([660, 660, 660])
    assert one.owner.silences == pytest.approx([61])


def test_each_silence_is_reported(run: Run) -> None:
    one = watched(run)
    one.look(61)
    one.attempt.pulse.progressed_at += 100
    one.look(159)
    assert one.look(161) == pytest.approx(760)
    assert one.owner.silences == pytest.approx([61, 61])


def test_a_heartbeat_and_an_entry_are_progress(run: Run) -> None:
    ctx = run.attempt()
    attempt = attempt_of(ctx)
    seen: list[float] = []

    def beat() -> None:
        seen.append(attempt.pulse.progressed_at)
        attempt.pulse.progressed_at -= 100
        current_step().heartbeat()
        seen.append(attempt.pulse.progressed_at)

    attempt.pulse.progressed_at -= 100
    before = attempt.pulse.progressed_at
    ctx.run("beat", beat)
    assert before + 99 < seen[0] <= seen[1] <= attempt.pulse.progressed_at


def test_a_wait_of_the_library_is_no_silence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    ctx = run.attempt(inline_retry_limit=1000)
    attempt = attempt_of(ctx)
    monkeypatch.setattr(time, "sleep", lambda _: waits.append(attempt.pulse.progressed_at - time.monotonic()))
    options = RunOptions(initial_retry_interval=200, max_retry_interval=200, max_attempts=2)
    with pytest.raises(RetriesExhausted):
        ctx.run("fail", lambda: 1 / 0, options)
    ctx.sleep(300)
    assert waits == pytest.approx([200, 300], abs=5)


def test_what_goes_on_beside_a_sleep_is_no_silence(run: Run, place: Nowhere) -> None:
    async def body() -> None:
        ctx = run.async_attempt()
        one = Watched(ctx, place, inactivity=60, abort=600)
        one.attempt.begin_here()
        outside = asyncio.get_running_loop().create_future()

        async def goes_on() -> None:
            await outside

        busy, asleep = asyncio.ensure_future(goes_on()), asyncio.ensure_future(ctx.sleep(0.1))
        one.attempt.pulse.progressed_at -= 1000
        await asyncio.sleep(0)
        assert one.look(700) == pytest.approx(760)
        await asleep
        assert time.monotonic() - one.attempt.pulse.progressed_at < 500
        outside.set_result(None)
        await busy

    asyncio.run(body())
    assert place.sent == []


# -- too long ----------------------------------------------------------------------------------------------------------


def test_the_body_is_struck_between_its_steps(run: Run, place: Nowhere) -> None:
    one = watched(run, place)
    one.look(659)
    assert place.sent == []
    assert one.look(661) == pytest.approx(661.1)
    (interruption,) = place.sent
    assert interruption.overrun.step is None
    assert type(interruption.overrun.error) is DurableTimeoutError
    assert "no progress for 660 s" in str(interruption.overrun.error)
    assert interruption.arrives()
    assert one.attempt.pulse.interrupt is interruption.overrun
    assert not interruption.arrives()


def test_a_step_is_struck_when_its_attempt_is_silent(run: Run, place: Nowhere) -> None:
    one = watched(run, place)
    step = one.begin_step()
    one.look(661)
    assert place.sent[0].overrun.step is step
    assert place.sent[0].arrives()
    assert one.attempt.pulse.interrupt is None


def test_code_that_follows_a_struck_step_has_time_of_its_own(run: Run, place: Nowhere) -> None:
    """A ``finally``, say: the abort is told from the end of the step, and not from what came before."""
    ctx = run.attempt()
    one = Watched(ctx, place, 60, 600)

    def strike() -> None:
        one.attempt.pulse.progressed_at -= 661
        one.look(0)
        assert place.sent[0].arrives()
        raise place.sent[0].overrun

    with pytest.raises(FailAttempt):
        ctx.run("charge", strike)
    assert one.look(0.1) == pytest.approx(60, abs=5)
    assert len(place.sent) == 1


def test_a_step_is_struck_when_its_own_time_is_over_however_lively(run: Run, place: Nowhere) -> None:
    one = watched(run, place)
    step = one.begin_step(timeout=5)
    assert one.look(0) == pytest.approx(5)
    one.attempt.pulse.progressed_at += 4
    assert one.look(6) == pytest.approx(6.1)
    assert place.sent[0].overrun.step is step
    assert "no result within 5 s" in str(place.sent[0].overrun.error)
    assert one.owner.silences == []


def test_what_is_not_reached_is_struck_again_and_then_left(run: Run, place: Nowhere) -> None:
    one = watched(run, place)
    one.begin_step(timeout=5)
    assert one.look(6) == pytest.approx(6.1)
    assert one.look(6.1) == pytest.approx(6.2)
    assert len(place.sent) == 2
    assert place.sent[0] is place.sent[1]
    assert one.look(11) == math.inf
    assert [overrun.step for overrun in one.owner.left] == [place.sent[0].overrun.step]


def test_what_is_struck_has_a_while_to_end(run: Run, place: Nowhere) -> None:
    one = watched(run, place)
    one.begin_step(timeout=5)
    one.look(6)
    assert place.sent[0].arrives()
    assert one.look(6.1) == pytest.approx(11)
    assert one.owner.left == []
    one.look(11)
    assert len(place.sent) == len(one.owner.left) == 1


def test_what_cannot_be_struck_is_left_at_once(run: Run) -> None:
    one = watched(run)
    step = one.begin_step(timeout=5)
    assert one.look(6) == math.inf
    assert [overrun.step for overrun in one.owner.left] == [step]


def test_what_ends_just_then_is_left_once_and_its_attempt_watched_on(run: Run) -> None:
    one = watched(run)
    first = one.begin_step(timeout=5)
    one.look(6)
    one.look(7)
    assert len(one.owner.left) == 1
    one.attempt.pulse.running.remove(first)
    second = one.begin_step(timeout=9)
    assert one.look(8) == pytest.approx(9)
    one.look(10)
    assert [overrun.step for overrun in one.owner.left] == [first, second]


@pytest.mark.parametrize("ending", ["the step ends", "it is executed again", "the attempt ends", "a heartbeat"])
def test_a_strike_for_what_has_ended_does_not_land(run: Run, place: Nowhere, ending: str) -> None:
    one = watched(run, place)
    step = one.begin_step()
    one.look(661)
    match ending:
        case "the step ends":
            one.attempt.pulse.running.remove(step)
        case "it is executed again":
            step.executions += 1
        case "the attempt ends":
            one.attempt.pulse.closed = True
        case "a heartbeat":
            one.attempt.pulse.progressed_at += 660
    assert not place.sent[0].arrives()


def test_without_timeouts_nothing_is_ever_due(run: Run) -> None:
    one = watched(run, None, math.inf, math.inf)
    assert one.watch.first_due == math.inf
    assert one.look(1e9) == math.inf
    assert one.owner.silences == one.owner.left == []


# -- the thread --------------------------------------------------------------------------------------------------------


def test_the_watcher_is_awake_in_time_for_whatever_is_expected(run: Run) -> None:
    """Also when it sleeps already, and when another attempt is due much later."""
    attempts = [Run(f"task-{number}").attempt() for number in range(2)]
    owners = [Owner(), Owner()]
    try:
        watchdog.watch(Watch(attempt_of(attempts[0]).pulse, owners[0], None, 1000, 1000))
        watchdog.watch(Watch(attempt_of(attempts[1]).pulse, owners[1], None, 0.05, 1000))
        eventually(lambda: len(owners[1].silences) == 1, 2)
        assert owners[0].silences == []
    finally:
        for ctx in attempts:
            watchdog.forget(attempt_of(ctx).pulse)


def test_attempts_that_begin_at_the_same_time_start_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    entered: list[float] = []
    together, start = threading.Barrier(8), threading.Thread.start
    rounds = Rounds("rounds of a test", lambda: math.inf)

    def start_slowly(thread: threading.Thread) -> None:
        if thread.name == "rounds of a test":
            started.append(thread.name)
            eventually(lambda: len(entered) == 8, 5)
        start(thread)

    def expect() -> None:
        together.wait(10)
        entered.append(1)
        rounds.expect(1.0)

    with ThreadPoolExecutor(8) as threads:
        monkeypatch.setattr(threading.Thread, "start", start_slowly)
        for one in [threads.submit(expect) for _ in range(8)]:
            one.result()

    assert started == ["rounds of a test"]


def test_a_thread_that_could_not_be_started_is_started_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    rounds = Rounds("rounds of a test", lambda: made.append(1) or math.inf)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            rounds.expect(1.0)
    rounds.expect(1.0)

    eventually(lambda: made != [], 5)


def test_an_attempt_that_cannot_be_looked_at_does_not_harm_the_others(run: Run) -> None:
    class Broken(Owner):
        def inactive(self, seconds: float) -> None:
            raise OSError(seconds)

    broken, whole = (attempt_of(Run(name).attempt()).pulse for name in ("broken", "whole"))
    owner = Owner()
    try:
        watchdog.watch(Watch(broken, Broken(), None, 0.05, 1000))
        watchdog.watch(Watch(whole, owner, None, 0.1, 1000))
        eventually(lambda: len(owner.silences) == 1, 2)
    finally:
        watchdog.forget(broken)
        watchdog.forget(whole)


# -- for real, in the main thread of a process, and on the loop --------------------------------------------------------

SHORT = RunOptions(timeout=0.05)


def linger() -> None:
    time.sleep(FOR_EVER)


def called(body: Any) -> Any:
    """What a direct call of a durable task with this body returns."""
    return durable_task(name=f"progress.{body.__name__}")(body)()


def test_a_direct_call_raises_the_timeout_of_its_step(app: Celery) -> None:
    def sleeps(ctx: DurableContext) -> None:
        ctx.run("sleep", time.sleep, SHORT, FOR_EVER)

    with pytest.raises(DurableTimeoutError, match=r"no result within 0.05 s"):
        called(sleeps)


def test_no_except_exception_swallows_it(app: Celery) -> None:
    swallowed: list[Exception] = []

    def stubborn() -> None:
        while True:
            try:
                time.sleep(FOR_EVER)
            except Exception as error:
                swallowed.append(error)

    def body(ctx: DurableContext) -> None:
        ctx.run("stubborn", stubborn, SHORT)

    with pytest.raises(DurableTimeoutError):
        called(body)
    assert swallowed == []


def test_a_loop_of_python_is_interrupted(app: Celery) -> None:
    def count() -> None:
        give_up_at = time.monotonic() + FOR_EVER
        while time.monotonic() < give_up_at:
            pass

    def body(ctx: DurableContext) -> None:
        ctx.run("count", count, SHORT)

    with pytest.raises(DurableTimeoutError):
        called(body)


def test_an_async_action_is_cancelled(app: Celery) -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(FOR_EVER)
        finally:
            ended.append("cleaned up")

    def body(ctx: DurableContext) -> None:
        ctx.run("hang", hang, SHORT)

    async def body_async(ctx: AsyncDurableContext) -> None:
        await ctx.run("hang", hang, SHORT)

    for each in (body, body_async):
        with pytest.raises(DurableTimeoutError):
            called(each)
    assert ended == ["cleaned up"] * 2


def test_a_cancelled_step_leaves_the_body_uncancelled(app: Celery) -> None:
    async def body(ctx: AsyncDurableContext) -> tuple[int, str]:
        with suppress(DurableTimeoutError):
            await ctx.run("hang", asyncio.sleep, SHORT, FOR_EVER)
        task: Any = asyncio.current_task()
        # Python 3.11 counts cancellations, and timeouts of asyncio's go by that.
        return task.cancelling() if hasattr(task, "cancelling") else 0, await ctx.run("next", lambda: "done")

    assert called(body) == (0, "done")


def test_siblings_of_a_step_that_takes_too_long_go_on(app: Celery) -> None:
    async def body(ctx: AsyncDurableContext) -> list[Any]:
        async def later() -> str:
            await asyncio.sleep(0.15)
            return "later"

        return await asyncio.gather(
            ctx.run("hang", asyncio.sleep, SHORT, FOR_EVER), ctx.run("later", later), return_exceptions=True
        )

    first, second = called(body)
    assert (type(first), second) == (DurableTimeoutError, "later")


def test_a_sync_action_of_an_async_task_is_left_in_its_thread(app: Celery) -> None:
    gate = threading.Event()

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("wait", gate.wait, SHORT, FOR_EVER)

    try:
        with pytest.raises(DurableTimeoutError):
            called(body)
    finally:
        gate.set()


def test_a_timeout_of_the_actions_own_is_its_own(app: Celery) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        async def inner() -> None:
            await asyncio.wait_for(asyncio.sleep(FOR_EVER), 0.01)

        await ctx.run("inner", inner, RunOptions(timeout=5))

    # Before Python 3.11 asyncio has a TimeoutError of its own.
    with pytest.raises(asyncio.TimeoutError) as raised:
        called(body)
    assert type(raised.value) is not DurableTimeoutError


@pytest.mark.parametrize("how", ["as a function", "eagerly"])
def test_the_timeout_of_a_step_ends_the_task_that_it_calls(app: Celery, how: str) -> None:
    """It is the step's own: the called task neither fails by it nor retries."""
    caught: list[Exception] = []

    @durable_task(name="progress.called")
    def as_a_function(_ctx: DurableContext) -> None:
        try:
            time.sleep(FOR_EVER)
        except Exception as error:
            caught.append(error)

    @durable_task(name="progress.eager")
    def eagerly(ctx: DurableContext) -> None:
        try:
            ctx.run("inner", time.sleep, RunOptions(timeout=FOR_EVER, max_attempts=5), FOR_EVER)
        except Exception as error:
            caught.append(error)

    inner: Any = as_a_function if how == "as a function" else eagerly.apply

    def outer(ctx: DurableContext) -> None:
        ctx.run("outer", lambda: inner() and None, SHORT)

    with pytest.raises(DurableTimeoutError, match=r"0.05 s"):
        called(outer)
    assert caught == []


def test_a_quick_step_with_a_timeout_is_a_step(run: Run) -> None:
    assert run.attempt().run("quick", lambda: 5, RunOptions(timeout=60)) == 5


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, FailAttempt), ({"initial_retry_interval": 1}, RetryStep), ({"max_attempts": 1}, RetriesExhausted)],
    ids=["by the policy of the task", "by its own options", "exhausted"],
)
def test_a_timeout_is_a_failed_execution(run: Run, options: dict[str, Any], kind: type[BaseException]) -> None:
    ctx = run.attempt()
    attempt = attempt_of(ctx)
    watchdog.watch(Watch(attempt.pulse, Owner(), current_target()))
    try:
        with pytest.raises(kind) as raised:
            ctx.run("linger", linger, RunOptions(timeout=0.3, **options))
    finally:
        watchdog.forget(attempt.pulse)
    if isinstance(raised.value, RetriesExhausted):
        assert (raised.value.attempts, raised.value.last_error_type) == (1, "DurableTimeoutError")
        assert "in linger" in raised.value.last_error_traceback
    else:
        assert isinstance(raised.value, Interrupt)
        assert type(raised.value.error) is DurableTimeoutError
    run.end()
    assert run.entry("step:1")["attempts"] == 1


# -- which timeouts an attempt has -------------------------------------------------------------------------------------


def nothing() -> None:
    """The body of a task."""


@pytest.mark.parametrize(
    ("conf", "options", "expected"),
    [
        ({}, {}, (60, 600)),
        ({"durable_inactivity_timeout": 5, "durable_abort_timeout": 6}, {}, (5, 6)),
        ({"durable_inactivity_timeout": 5, "durable_abort_timeout": 6}, {"abort_timeout": 7}, (5, 7)),
        ({}, {"soft_time_limit": 10}, (60, math.inf)),
        ({}, {"time_limit": 10}, (60, math.inf)),
        ({"task_time_limit": 10}, {}, (60, math.inf)),
        ({"task_soft_time_limit": 10}, {"abort_timeout": 7}, (60, 7)),
        ({}, {"time_limit": 10, "abort_timeout": 7}, (60, 7)),
    ],
    ids=str,
)
def test_a_time_limit_takes_the_place_of_the_abort_that_the_task_does_not_set(
    app: Celery, conf: dict[str, Any], options: dict[str, Any], expected: tuple[float, float]
) -> None:
    app.conf.update(conf)
    task = app.task(base=DurableTask, name="progress.limited", **options)(nothing)
    assert (task.durable_attempt_settings.inactivity_timeout, task.durable_attempt_settings.abort_timeout) == expected
