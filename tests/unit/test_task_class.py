"""`base=DurableTask` and `task_cls=`: on top of the task class that the app has, and not in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from celery import Celery, Task, shared_task

from celery_durable import DurableContext, DurableTask, durable_task

TASK_CLS = "celery_durable:DurableTask"


class Own(Task[Any, Any]):
    """A task class of the user's."""

    made: ClassVar[list[str]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Own.made.append(cls.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ["own", super().__call__(*args, **kwargs)]


class Mixin:
    """One that knows nothing of Celery."""

    def delay_on_commit(self) -> str:
        return "mixin"


class OwnDurable(Mixin, DurableTask[Any, Any]):
    """A durable one of the user's."""


class OwnDurableFirst(DurableTask[Any, Any], Own):
    """An own one that is made durable by hand."""


class OwnDurableLast(Own, DurableTask[Any, Any]):
    """The same in the other order."""


@pytest.fixture
def under_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps that are made now have Celery's Django fixup."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")
    monkeypatch.syspath_prepend(".")  # the fixup does so, too


@pytest.fixture(params=[None, TASK_CLS, "class"], ids=["celery's own", "task_cls=path", "task_cls=class"])
def any_app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    yield from _made({"class": DurableTask}.get(request.param, request.param))


def _made(task_cls: Any) -> Iterator[Celery]:
    app = Celery("task_class", broker="memory://", set_as_current=False, task_cls=task_cls)
    yield app
    app.close()


def test_tasks_of_every_kind_have_delay_on_commit_under_django(
    under_django: None, app: Celery, any_app: Celery
) -> None:
    any_app.set_current()

    @any_app.task
    def plain() -> int:
        return 1

    @any_app.task(base=DurableTask, bind=True)
    def based(self: Any) -> Any:
        return self.ctx.run("one", lambda: 1)

    @any_app.task(base=OwnDurableFirst, bind=True)
    def on_a_base(self: Any) -> Any:
        return self.ctx.run("one", lambda: 1)

    @shared_task(base=DurableTask, bind=True)
    def shared(self: Any) -> Any:
        return self.ctx.run("one", lambda: 1)

    @durable_task
    def durable(ctx: DurableContext) -> int:
        return ctx.run("one", lambda: 1)

    @durable_task(base=DurableTask, app=any_app)
    def both(ctx: DurableContext) -> int:
        return ctx.run("one", lambda: 1)

    for task in (plain, based, on_a_base, shared, durable, both):
        assert callable(task.delay_on_commit)
        assert callable(task.apply_async_on_commit)
        assert task() in (1, ["own", 1])


def test_celerys_way_of_setting_the_class_later_changes_nothing(under_django: None, app: Celery) -> None:
    for later in _made(None):
        later.task_cls = TASK_CLS

        @later.task
        def plain() -> int:
            return 1

        assert isinstance(plain, DurableTask)
        assert hasattr(plain, "delay_on_commit")


def test_what_the_user_has_comes_before_djangos(under_django: None, app: Celery) -> None:
    for own in _made(OwnDurable):

        @own.task
        def plain() -> int:
            return 1

        assert plain.delay_on_commit() == "mixin"
        assert callable(plain.apply_async_on_commit)


def test_without_django_there_is_no_delay_on_commit(app: Celery, any_app: Celery) -> None:
    @any_app.task(base=DurableTask)
    def based() -> int:
        return 1

    assert not hasattr(based, "delay_on_commit")


@pytest.mark.parametrize("task_cls", [Own, f"{__name__}:Own", OwnDurableFirst, f"{__name__}:OwnDurableLast"], ids=str)
def test_a_base_of_ours_is_on_top_of_the_apps_own_class(app: Celery, task_cls: Any) -> None:
    for own in _made(task_cls):

        @own.task(base=DurableTask, bind=True)
        def based(self: Any) -> Any:
            return self.ctx.run("one", lambda: 1)

        @durable_task(app=own, base=DurableTask)
        def durable(ctx: DurableContext) -> int:
            return ctx.run("one", lambda: 1)

        assert isinstance(based, Own)
        assert based() == durable() == ["own", 1]
        assert {"based", "durable"} <= set(Own.made)


def test_a_base_of_the_users_takes_the_place_of_the_apps_class_as_in_celery(app: Celery) -> None:
    for own in _made(Own):

        @own.task(base=OwnDurable)
        def based() -> int:
            return 1

        assert based() == 1
        assert not isinstance(based, Own)
