"""The Celery app under chaos: a sync and an async durable task that play a program against their context.

The player is a generator of calls on the context, which are the same for both. It says in `effects` what it asks for
and what it sees, and its actions say when they begin and end.
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from celery import Celery
from typing_extensions import Self

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from celery_durable.drivers.driver import run_to_end
from tests.chaos import effects
from tests.chaos.programs import (
    MAX_RECOVERIES_OF_A_POISON,
    TIMEOUT_OF_A_CROWD,
    Operation,
    Program,
    told,
    value_of,
)

TERMS_VARIABLE = "DURABLE_CHAOS"

terms = json.loads(os.environ[TERMS_VARIABLE])
app = Celery("chaos", broker=terms["broker"], backend=terms["backend"])
app.conf.update(terms["conf"])
IS_NEW = terms["conf"]["durable_build"] == "new"
"""Whether this worker has the new code."""

PATIENTLY = RetryPolicy(initial_retry_interval=0.05, max_retry_interval=0.5, max_attempts=None)

Call = tuple[str, tuple[Any, ...]]
"""A verb of the context, with its arguments."""


# -- tasks -------------------------------------------------------------------------------------------------------------


# One run may be hit very often here, and is to survive it.
@durable_task(name="chaos.sync", task_retry_policy=PATIENTLY, max_recoveries=1000)
def play(ctx: DurableContext, program: Program) -> list[list[str]]:
    """Play a program; return what was seen of it."""
    return run_to_end(_play(ctx, program))


@durable_task(name="chaos.poisoned", task_retry_policy=PATIENTLY, max_recoveries=MAX_RECOVERIES_OF_A_POISON)
def play_poisoned(ctx: DurableContext, program: Program) -> list[list[str]]:
    """Play a program that is expected to kill."""
    return run_to_end(_play(ctx, program))


# What its policy retries, pauses it.
@durable_task(
    name="chaos.pausing", task_retry_policy=RetryPolicy(max_attempts=1, on_exhausted="pause"), max_recoveries=1000
)
def play_pausing(ctx: DurableContext, program: Program) -> list[list[str]]:
    """Play a program in which somebody has to help."""
    return run_to_end(_play(ctx, program))


@durable_task(name="chaos.async", task_retry_policy=PATIENTLY, max_recoveries=1000)
async def play_async(ctx: AsyncDurableContext, program: Program) -> list[list[str]]:
    """Play a program on the loop."""
    return await _play(ctx, program)


@durable_task(name="chaos.crowd", task_retry_policy=PATIENTLY, max_recoveries=1000)
async def play_crowd(ctx: AsyncDurableContext, program: Program) -> list[list[str]]:
    """Take all steps of a crowd side by side."""
    [crowd] = program
    with Player(ctx) as player:
        await asyncio.gather(*(_take_part(ctx, player, step) for step in crowd["steps"]))
        return sorted(player.seen)


async def _take_part(ctx: AsyncDurableContext, player: "Player", step: Operation) -> None:
    options = RunOptions(
        timeout=TIMEOUT_OF_A_CROWD, max_attempts=step["attempts"], initial_retry_interval=0.1, max_retry_interval=0.5
    )
    with suppress(TerminalError):  # it is seen
        await player.take_part(ctx, step["at"], options, player.hanging(step))


async def _play(ctx: DurableContext | AsyncDurableContext, program: Program) -> list[list[str]]:
    with Player(ctx) as player:
        calls = player.play(program)
        proceed: Callable[[], Call] = partial(next, calls)
        while True:
            try:
                verb, arguments = proceed()
            except StopIteration:
                return player.seen
            try:
                value = getattr(ctx, verb)(*arguments)
                proceed = partial(calls.send, await value if inspect.isawaitable(value) else value)
            except TerminalError as error:
                proceed = partial(calls.throw, error)


# -- the player --------------------------------------------------------------------------------------------------------


class Player:
    """Plays one attempt of a program; around it as a context manager, its beginning and its end are told."""

    def __init__(self, ctx: DurableContext | AsyncDurableContext) -> None:
        self._run = ctx.task_id
        self._is_replaying = lambda: ctx.is_replaying
        self._attempt = ctx.attempt
        self.seen: list[list[str]] = []

    def __enter__(self) -> Self:
        self._tell("starts")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        self._tell("leaves", text="returns" if kind is None else kind.__name__)

    def play(self, program: Program) -> Generator[Call, Any, None]:
        for operation in program:
            yield from getattr(self, f"_{operation['do']}")(operation)

    def _step(self, step: Operation) -> Generator[Call, Any, None]:
        yield from self._execute(step["at"], self._action(step), _options(step))

    def _draw(self, draw: Operation) -> Generator[Call, Any, None]:
        # What else an attempt draws from a stream of its own must not change what it draws here.
        noise = yield "random", (f"noise {self._attempt}",)
        noise.random()
        drawn = yield draw["kind"], ()
        self._sees(draw["at"], told(drawn.random() if draw["kind"] == "random" else drawn))

    def _sleep(self, sleep: Operation) -> Generator[Call, Any, None]:
        self._tell("asks", sleep["at"])
        slept = yield "sleep", (sleep["seconds"], sleep["at"])
        self._sees(sleep["at"], told(slept))

    def _think(self, think: Operation) -> Generator[Call, Any, None]:
        time.sleep(think["seconds"])
        yield from ()

    def _send(self, send: Operation) -> Generator[Call, Any, None]:
        child = str((yield "uuid", ()))
        self._sees(f"{send['at']}.id", child)
        yield from self._execute(send["at"], self._sending(send, child), RunOptions())

    def _try(self, block: Operation) -> Generator[Call, Any, None]:
        try:
            yield from self.play(block["body"])
        except TerminalError:
            yield from self.play(block["rescue"])

    def _saga(self, saga: Operation) -> Generator[Call, Any, None]:
        compensations: list[Operation] = []
        try:
            for part in saga["parts"]:
                yield from self._step(part["step"])
                compensations.append(part["undo"])
        except TerminalError:
            yield from self.play(compensations[::-1])
            raise

    def _deploy(self, change: Operation) -> Generator[Call, Any, None]:
        yield from self._step(change["new" if IS_NEW else "old"])

    def _patch(self, change: Operation) -> Generator[Call, Any, None]:
        taken = (yield "patched", (change["at"],)) if IS_NEW else False
        yield from self._step(change["new" if taken else "old"])

    def _die(self, die: Operation) -> Generator[Call, Any, None]:
        def kill_this_process() -> None:
            self._begins(die["at"])
            os.kill(os.getpid(), signal.SIGKILL)

        yield from self._execute(die["at"], kill_this_process, RunOptions())

    def _stray(self, stray: Operation) -> Generator[Call, Any, None]:
        # Nothing comes after it that is recorded before it is.
        strayed = {"at": f"{stray['at']}.stray"} if self._is_replaying() else {}
        yield from self._step({**stray["step"], **strayed})
        yield from self._step(stray["then"])

    def _pause(self, pause: Operation) -> Generator[Call, Any, None]:
        def act() -> list[Any]:
            self._begins(pause["at"])
            time.sleep(pause["seconds"])
            fails = 0 if effects.is_mended(terms["effects"], self._run) else sys.maxsize
            return self._ends({"at": pause["at"], "fails": fails, "then": "value"})

        yield from self._execute(pause["at"], act, RunOptions())

    async def take_part(
        self, ctx: AsyncDurableContext, at: str, options: RunOptions, action: Callable[[], list[Any]]
    ) -> None:
        calls = self._execute(at, action, options)
        verb, arguments = next(calls)
        try:
            value = await getattr(ctx, verb)(*arguments)
        except TerminalError as error:
            calls.throw(error)
        else:
            with suppress(StopIteration):
                calls.send(value)

    # -- steps and their actions

    def hanging(self, step: Operation) -> Callable[[], list[Any]]:
        """Return an action that outlasts its timeout so often."""

        def act() -> list[Any]:
            self._begins(step["at"])
            hangs = current_step().attempt <= step["hangs"]
            time.sleep(3 * TIMEOUT_OF_A_CROWD if hangs else step["seconds"])
            return self._ends({"fails": 0, "then": "value", **step})

        return act

    def _execute(self, at: str, action: Callable[..., Any], options: RunOptions) -> Generator[Call, Any, None]:
        self._tell("asks", at)
        try:
            value, mark = yield "run", (at, action, options)
        except TerminalError as error:
            self._sees(at, f"{type(error).__name__} at {at}", mark=repr(error.args))
            raise
        self._sees(at, told(value), mark)

    def _action(self, step: Operation) -> Callable[..., Any]:
        def act() -> list[Any]:
            self._begins(step["at"])
            time.sleep(step["seconds"])
            return self._ends(step)

        async def act_async() -> list[Any]:
            self._begins(step["at"])
            await asyncio.sleep(step["seconds"])
            return self._ends(step)

        return act_async if step["async"] else act

    def _sending(self, send: Operation, child: str) -> Callable[[], Any]:
        def act() -> list[Any]:
            self._begins(send["at"])
            try:
                app.send_task(f"chaos.{send['task']}", args=[send["program"]], task_id=child)
            except Exception:
                self._tell("ends", send["at"], current_step().attempt, "errs")
                raise
            mark = self._mark()
            self._tell("ends", send["at"], current_step().attempt, "value", mark)
            return [value_of(self._run, send["at"]), mark]

        return act

    def _begins(self, at: str) -> None:
        step = current_step()
        self._tell("begins", at, step.attempt, mark=str(step.idempotency_key))

    def _ends(self, step: Operation) -> list[Any]:
        execution = current_step().attempt
        how = "fails" if execution <= step["fails"] else step["then"]
        mark = self._mark()
        self._tell("ends", step["at"], execution, how, mark)
        if how == "fails":
            raise ConnectionError(f"declared failure {execution} at {step['at']}")
        if how == "terminal":
            raise TerminalError(f"{step['at']} of {self._run}", 409, {"by": mark})
        return [value_of(self._run, step["at"]), mark]

    def _mark(self) -> str:
        """Return what tells this execution from all others, beginning with its attempt."""
        return f"{self._attempt}:{uuid4().hex[:12]}"

    # -- what is told

    def _sees(self, at: str, text: str, mark: str = "") -> None:
        self._tell("sees", at, text=text, mark=mark)
        self.seen.append([at, text])

    def _tell(self, event: str, at: str = "", execution: int = 0, text: str = "", mark: str = "") -> None:
        effects.write(terms["effects"], effects.Line(self._run, self._attempt, event, at, execution, text, mark))


def _options(step: Operation) -> RunOptions:
    """Return retry options for a step that has any; without them the task's policy retries it."""
    if step["by"] == "task":
        return RunOptions()
    return RunOptions(initial_retry_interval=step["interval"], max_retry_interval=0.5, max_attempts=step["attempts"])
