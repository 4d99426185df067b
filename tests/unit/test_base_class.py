"""``DurableTask`` as a base class, as a mixin, and as the class of all tasks of an app."""

from __future__ import annotations

import builtins
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from celery import Celery

from celery_durable import (
    ConfigurationError,
    ContextInStepError,
    DurableTask,
    EntryNotRecordableError,
    NoContextError,
    RetriesExhausted,
    RunOptions,
    TerminalError,
)
from tests.unit.conftest import Action
from tests.unit.tasks import body_of, failure_of

pytestmark = pytest.mark.usefixtures("app")


def test_the_base_class_opens_its_context_at_first_use(app: Celery) -> None:
    @app.task(base=DurableTask, bind=True, name="eager.base")
    def count(self: Any) -> tuple[bool, int]:
        return self.ctx is self.ctx, self.ctx.run("count", lambda: 5)

    assert count() == (True, 5)
    assert count.apply().result == (True, 5)


def test_the_context_of_a_task_that_does_not_run_is_an_error(app: Celery) -> None:
    task = app.task(base=DurableTask, name="eager.idle")(body_of(Action(1)))
    with pytest.raises(ConfigurationError, match=r"eager\.idle"):
        task.ctx  # noqa: B018


@pytest.mark.parametrize(
    ("options", "executions"),
    [({}, 1), ({"autoretry_for": (OSError,), "max_retries": 2, "default_retry_delay": 0}, 3)],
    ids=["plain", "autoretry_for"],
)
def test_celery_decides_about_a_step_without_options(app: Celery, options: dict[str, Any], executions: int) -> None:
    action, caught = Action(OSError("away")), []

    @app.task(base=DurableTask, bind=True, name="eager.celery_decides", **options)
    def fetch(self: Any) -> Any:
        try:
            return self.ctx.run("fetch", action)
        except Exception as error:
            caught.append(error)
            raise

    failure_of(fetch.apply(), OSError)
    assert action.executions == executions
    assert caught == []


def test_a_step_with_options_is_retried_by_them_under_the_base_class(app: Celery) -> None:
    action = Action(OSError("away"))

    @app.task(base=DurableTask, bind=True, max_retries=0, name="eager.six")
    def fetch(self: Any) -> Any:
        return self.ctx.run("fetch", action, RunOptions(initial_retry_interval=3600, max_attempts=6))

    assert failure_of(fetch.apply(), RetriesExhausted).attempts == 6
    assert action.executions == 6


class Mixin:
    """Something else that a task is."""

    def greeting(self) -> str:
        return "hello"


def test_class_based_tasks_and_mixins_work_in_either_order(app: Celery) -> None:
    class First(DurableTask[Any, Any], Mixin):
        name = "eager.first"

        def run(self, word: str) -> str:
            return self.greeting() + str(self.ctx.run("say", lambda: word))

    class Second(Mixin, DurableTask[Any, Any]):
        name = "eager.second"

        def run(self, word: str) -> str:
            return self.greeting() + str(self.ctx.run("say", lambda: word))

    for kind in (First, Second):
        task = app.register_task(kind())
        assert task("!") == task.apply(("!",)).result == "hello!"


def test_a_durable_task_may_be_the_class_of_all_tasks() -> None:
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task(bind=True)
    def count(self: Any) -> int:
        return self.ctx.run("count", lambda: 5)

    @app.task
    def plain(a: int) -> int:
        return a + 1

    assert (count(), count.apply().result) == (5, 5)
    assert (plain(1), plain.apply((1,)).result) == (2, 2)
    app.close()


@pytest.mark.parametrize("look_at", [mock.create_autospec, inspect.getmembers, lambda task: mock.Mock(spec=task)])
def test_a_task_can_be_looked_at_all_over_while_it_does_not_run(look_at: Callable[[Any], Any]) -> None:
    """Tests of users replace tasks by mocks that are made after them."""
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task
    def plain() -> None: ...

    look_at(plain)
    with pytest.raises(NoContextError, match=r"the context of .*plain is known while the task runs, in its own body"):
        _ = plain.ctx
    assert issubclass(NoContextError, ConfigurationError)
    app.close()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
def test_what_a_task_raises_that_never_uses_its_context_is_raised_as_it_is() -> None:
    app = Celery("all", task_cls=DurableTask, set_as_current=False)
    group = getattr(builtins, "ExceptionGroup")("two", [OSError(1)])  # noqa: B009  not in Python 3.10
    executions = Action(group)

    @app.task(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
    def plain() -> None:
        executions()

    with pytest.raises(type(group)):
        plain()
    result = plain.apply()
    assert result.result is group
    assert executions.executions == 2, "Celery's autoretry sees a group, which it was not told to retry"
    assert "ending.py" not in result.traceback
    app.close()


NAMED = """
import sys
from celery import Celery

app = Celery("named", task_cls="celery_durable:DurableTask")

@app.task(bind=True)
def count(self):
    return self.ctx.run("count", lambda: 5)

assert "celery_durable" not in sys.modules
app.finalize()
assert "celery_durable.retry" in app.tasks
print(count.apply().result)
"""


def test_the_class_of_all_tasks_may_be_named_where_nothing_of_it_is_imported() -> None:
    """Celery imports it while it makes the app's tasks."""
    ended = subprocess.run([sys.executable, "-c", NAMED], check=False, capture_output=True, text=True)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("5\n", "", 0)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda _: Action(TerminalError("no", 418))(), TerminalError),
        (lambda ctx: ctx.run("refuse", Action(TerminalError("no", 418))), TerminalError),
        (lambda ctx: ctx.run("fetch", Action(OSError()), RunOptions(max_attempts=1)), RetriesExhausted),
        (lambda ctx: ctx.run("make", object), EntryNotRecordableError),
        (lambda ctx: ctx.run("outer", ctx.uuid), ContextInStepError),
        (lambda ctx: ctx.run("step", Action(1), RunOptions(max_retries=3)), ConfigurationError),
    ],
    ids=["terminal", "terminal step", "exhausted", "not recordable", "in a step", "wrong option"],
)
def test_autoretry_for_all_exceptions_does_not_retry_what_is_final(app: Celery, use: Any, kind: Any) -> None:
    bodies = Action(None)

    @app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
    def final(self: Any) -> None:
        bodies()
        use(self.ctx)

    failure_of(final.apply(), kind)
    assert bodies.executions == 1


def test_autoretry_for_all_exceptions_still_retries_a_step_without_options(app: Celery) -> None:
    bodies, action = Action(None), Action(OSError(), OSError(), 3)

    @app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
    def flaky(self: Any) -> Any:
        bodies()
        return self.ctx.run("flaky", action)

    assert flaky.apply().result == 3
    assert bodies.executions == action.executions == 3
