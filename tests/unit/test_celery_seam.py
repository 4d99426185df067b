"""What Celery keeps to itself of its apps and tasks: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakSet

import billiard.common
import celery
import pytest
from celery import Celery, Task, _state
from celery.app.task import Context
from celery.utils.dispatch import Signal
from pydantic import BaseModel

from celery_durable.seams import celery as seam


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What comes of it in a thread that has no app and no task."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(timeout=10)
    return results[0]


def made(app: Celery, function: Callable[..., Any], name: str = "seam.made", **options: Any) -> Any:
    """The task that Celery's own decorator makes."""
    app.task(name=name, shared=False, **options)(function)
    return app.tasks[name]


# -- apps --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has made an app."""
    monkeypatch.setattr(_state, "_apps", WeakSet())
    monkeypatch.setattr(_state, "default_app", None)


def test_the_app_of_a_thread_is_its_own(app: Celery) -> None:
    assert seam.app_of_this_thread() is app
    assert in_a_thread(seam.app_of_this_thread) is None
    assert in_a_thread(lambda: [app.set_current(), seam.app_of_this_thread()][1]) is app


def test_an_app_is_found_by_the_name_that_the_celery_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("seam_app")
    module.app = Celery("seam_app", set_as_current=False)
    monkeypatch.setitem(sys.modules, "seam_app", module)

    assert seam.app_named("seam_app") is module.app
    with pytest.raises(ModuleNotFoundError):
        seam.app_named("nowhere")


def test_the_default_app_is_the_one_that_somebody_has_chosen(app: Celery) -> None:
    other = Celery("other", set_as_current=False)
    assert seam.chosen_default_app() is app

    other.set_default()

    assert seam.chosen_default_app() is other


def test_an_app_that_was_made_is_known(no_app: None) -> None:
    assert seam.apps_made() == []

    app = Celery("made", set_as_current=False)

    assert seam.apps_made() == [app]


def test_the_app_that_celery_makes_for_want_of_one_is_known_as_such(no_app: None) -> None:
    makeshift = in_a_thread(seam.makeshift_app)

    assert makeshift is in_a_thread(celery.current_app._get_current_object)  # type: ignore[attr-defined]  # noqa: SLF001
    assert _state.default_app is makeshift  # type: ignore[attr-defined]
    assert makeshift in _state._apps  # type: ignore[attr-defined]  # noqa: SLF001
    assert seam.chosen_default_app() is None
    assert seam.apps_made() == []


def test_what_stands_for_an_app_gives_it(app: Celery) -> None:
    assert seam.unproxied(celery.current_app) is app
    assert seam.unproxied(app) is app
    assert seam.unproxied("no app") == "no app"


@pytest.mark.parametrize(("broker", "quorum"), [("memory://", False), ("pyamqp://", True)])
def test_quorum_queues_are_rabbitmqs(broker: str, quorum: bool) -> None:
    app = Celery(broker=broker, set_as_current=False)
    assert not seam.uses_quorum_queues(app)

    app = Celery(broker=broker, set_as_current=False)
    app.conf.task_default_queue_type = "quorum"
    assert seam.uses_quorum_queues(app) == quorum


# -- tasks of functions ------------------------------------------------------------------------------------------------


def shelve(_: Any, item: str) -> str:
    """Put it there."""
    return f"shelved {item}"


def test_a_task_is_made_of_a_function_as_the_decorator_makes_it(app: Celery) -> None:
    base = type("Shop", (Task,), {"abstract": True})
    options = {"bind": True, "base": base, "serializer": "json"}
    decorated = made(app, shelve, "seam.decorated", **options)

    task = seam.task_from(app, shelve, name="seam.made", **options)

    assert app.tasks["seam.made"] is task
    assert task.delay.__self__ is task
    assert task("book") == "shelved book"
    assert isinstance(task, base)
    assert vars(type(task)).keys() == vars(type(decorated)).keys()


class Lock:
    """Counts who takes it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.taken = 0

    def __enter__(self) -> None:
        self.taken += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_all_apps_are_given_a_task_when_they_are_complete(app: Celery) -> None:
    later = Celery("later", set_as_current=False)
    given: list[Celery] = []
    finalizers = set(_state._on_app_finalizers)  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        lock: Any = Lock(app._finalize_mutex)  # noqa: SLF001
        app._finalize_mutex = lock  # noqa: SLF001
        app.finalize()
        assert lock.taken == 1  # Celery completes an app with it

        seam.give_to_all_apps(given.append)

        assert given == [app]
        assert lock.taken == 2
        later.finalize()
        assert given == [app, later]
    finally:
        _state._on_app_finalizers = finalizers  # noqa: SLF001


def test_a_task_of_an_app_is_made_when_that_is_complete(app: Celery) -> None:
    made: list[str] = []

    def make(name: str) -> Any:
        made.append(name)
        return seam.task_from(app, shelve, name=f"seam.{name}", bind=True)

    waits = seam.made_when_complete(app, lambda: make("waits"), shelve.__doc__)
    used = seam.made_when_complete(app, lambda: make("used"), shelve.__doc__)
    assert isinstance(waits, seam.Proxy)
    assert waits.__doc__ == "Put it there."
    assert made == []

    assert used.name == "seam.used"
    assert made == ["used"]

    app.finalize()
    assert made == ["used", "waits"]

    now = seam.made_when_complete(app, lambda: make("now"), shelve.__doc__)
    assert made == ["used", "waits", "now"]
    assert not isinstance(now, seam.Proxy)


class Book(BaseModel):
    """An argument that Celery validates."""

    title: str


def test_celerys_validation_of_an_argument_has_another_one_in_its_place(app: Celery) -> None:
    validated: list[tuple[type, Any]] = []

    def otherwise(validate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        assert list(inspect.signature(validate).parameters) == ["arg_model", "arg_value"]

        def validate_twice(model: Any, value: Any) -> Any:
            validated.append((model, value))
            return validate(model, value)

        return validate_twice

    def read(book: Book, times: int) -> str:
        return book.title * times

    task = made(app, read, "seam.read", pydantic=True)
    wrapper = vars(type(task))["run"].__func__

    other = seam.validating_otherwise(wrapper, otherwise)

    assert other({"title": "A"}, 2) == "AA"
    assert validated == [(Book, {"title": "A"})]
    assert other.__wrapped__ is read
    assert inspect.signature(other) == inspect.signature(wrapper)
    assert wrapper({"title": "A"}, 2) == "AA"
    assert len(validated) == 1
    assert seam.validating_otherwise(read, otherwise) is None


# -- task classes ------------------------------------------------------------------------------------------------------


def seen_as_made(look: Callable[[type], Any]) -> tuple[Any, list[Any]]:
    """A base class for tasks, and what *look* finds of each class that is made of it."""
    seen: list[Any] = []

    def note(cls: type) -> None:
        seen.append(look(cls))

    return type("Seen", (Task,), {"abstract": True, "__init_subclass__": classmethod(note)}), seen


def test_the_class_of_one_task_has_its_app_while_it_is_made(app: Celery) -> None:
    base, seen = seen_as_made(seam.app_of_task_class)

    task = made(app, shelve, "seam.seen", base=base)

    assert seen == [app]
    assert task.app is app


@pytest.fixture
def django_app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Celery]:
    """Makes apps that have Celery's support of Django."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")
    monkeypatch.syspath_prepend(".")  # Celery does so, too
    return lambda **options: Celery("shop", set_as_current=False, **options)


def test_the_class_of_django_is_known_while_a_task_class_is_made(django_app: Callable[..., Celery]) -> None:
    from celery.contrib.django.task import DjangoTask

    base, seen = seen_as_made(seam.task_class_of_django)

    assert issubclass(django_app().Task, DjangoTask)  # what Celery does where no class is given
    assert django_app(task_cls=base).Task
    assert seen == [DjangoTask]
    app = django_app()
    made(app, shelve, base=base)
    assert seen == [DjangoTask, DjangoTask]


def test_without_django_there_is_no_class_of_it(app: Celery) -> None:
    base, seen = seen_as_made(seam.task_class_of_django)

    made(app, shelve, base=base)

    assert seen == [None]
    assert seam.task_class_of_django(Task) is None


class Limited(seam.RequestsOwnLimit, Task):  # type: ignore[type-arg]
    """Keeps limits of retries by request, and notes those of each retry."""

    abstract = True

    def __init__(self) -> None:
        self.limits: list[int | None] = []

    def retry(self, *args: Any, **options: Any) -> Any:
        self.limits.append(options.get("max_retries"))
        return super().retry(*args, **options)


def test_a_limit_of_retries_belongs_to_the_request(app: Celery) -> None:
    kept: list[Any] = []

    def fetch(self: Any) -> None:
        self.retry(max_retries=7, throw=False)
        kept.append(self.request.__dict__.get("override_max_retries"))
        if len(kept) == 1:
            raise KeyError

    options: Any = {"autoretry_for": (KeyError,), "retry_kwargs": {"countdown": 0}}
    task = made(app, fetch, "seam.fetch", base=Limited, bind=True, **options)

    task.apply()

    assert kept == [7, 7]  # Celery has set it,
    assert task.limits == [7, 7, 7]  # and what retries by ``autoretry_for`` goes by it
    assert not hasattr(task, "override_max_retries")
    assert "override_max_retries" not in vars(task)


def test_celery_forgets_the_limit_of_a_request(app: Celery) -> None:
    def fetch(self: Any) -> None:
        self.override_max_retries = 7
        raise KeyError

    options: Any = {"autoretry_for": (KeyError,), "retry_kwargs": {"throw": False}}
    task = made(app, fetch, "seam.fetch", base=Limited, bind=True, **options)
    request = Context(id="1", retries=0, called_directly=False, is_eager=True, args=(), kwargs={})
    task.request_stack.push(request)

    with pytest.raises(celery.exceptions.Retry):
        task.run()

    assert task.limits == [7]
    assert "override_max_retries" not in vars(request)


def test_a_task_has_the_backend_that_it_is_given(app: Celery) -> None:
    task = made(app, shelve, "seam.backed")
    assert task.backend is app.backend

    seam.set_backend(task, "its own")

    assert task.backend == "its own"


def test_what_a_task_is_sent_by_is_known(app: Celery) -> None:
    task = made(app, shelve, "seam.sent", bind=True, serializer="json", compression="gzip")

    options = seam.sending_options(task)

    assert (options["serializer"], options["compression"]) == ("json", "gzip")
    calls: list[None] = []
    usual = type(task)._get_exec_options  # noqa: SLF001
    type(task)._get_exec_options = lambda self: [calls.append(None), usual(self)][1]  # type: ignore[func-returns-value]  # noqa: SLF001
    task.apply_async(("book",))
    assert calls  # it is what Celery sends by


class Overridden(Task):  # type: ignore[type-arg]
    """Has its own of what the library overrides, and notes who calls it."""

    abstract = True
    calls: ClassVar[list[str]] = []

    @classmethod
    def bind(cls, app: Any) -> Any:
        cls.calls.append("bind")
        return super().bind(app)

    @property
    def request(self) -> Any:
        self.calls.append("request")
        return self.request_stack.top or Context()

    def apply(self, *args: Any, **options: Any) -> Any:
        self.calls.append("apply")
        return super().apply(*args, **options)

    def signature_from_request(self, *args: Any, **options: Any) -> Any:
        self.calls.append("signature_from_request")
        return super().signature_from_request(*args, **options)


def test_celery_calls_what_is_overridden_of_its_task(app: Celery) -> None:
    def again(self: Any) -> int:
        assert self.request_stack.top is not None
        return self.request_stack.top.retries or self.retry(countdown=0)  # type: ignore[no-any-return]

    Overridden.calls.clear()
    task = made(app, again, base=Overridden, bind=True)
    assert "bind" in Overridden.calls
    app.conf.task_always_eager = True

    assert task.delay().get() == 1

    assert Overridden.calls.count("signature_from_request") == 1
    assert Overridden.calls.count("apply") == 2  # its retry is one, too
    assert "request" in Overridden.calls


def test_celery_retries_by_the_request_that_a_task_says_it_has(app: Celery) -> None:
    """Where async tasks run, no stack of a thread has it."""
    own = Context(id="7", retries=2, is_eager=True, called_directly=False, args=(), kwargs={})
    base = type("Own", (Task,), {"abstract": True, "request": property(lambda _: own)})
    task = made(app, shelve, base=base, bind=True)
    assert task.request_stack.top is None

    with pytest.raises(celery.exceptions.Retry) as retried:
        task.retry(countdown=1)

    options = retried.value.sig.options  # type: ignore[attr-defined]
    assert (options["task_id"], options["retries"]) == ("7", 3)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("apply", ["args", "kwargs", "link", "link_error", "task_id", "retries", "throw"]),
        ("retry", ["args", "kwargs", "exc", "throw", "eta", "countdown", "max_retries"]),
        ("signature_from_request", ["request", "args", "kwargs"]),
        ("start_strategy", ["app", "consumer"]),
    ],
)
def test_what_is_overridden_takes_these_parameters(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Task, method)).parameters)[1 : len(parameters) + 1] == parameters


# -- what runs ---------------------------------------------------------------------------------------------------------


def test_the_current_task_is_the_one_that_was_pushed(app: Celery) -> None:
    task = made(app, shelve, "seam.current")

    def push() -> list[Any]:
        before = celery.current_task._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        seam.push_current_task(task)
        return [before, app.current_task, app.current_worker_task]

    task.request_stack.push(Context(called_directly=False))
    assert in_a_thread(push) == [None, task, None]  # its requests are of this thread, too


def test_a_signal_has_the_receivers_that_were_connected() -> None:
    bell = Signal(name="seam", providing_args=("task_id",))

    def receive(**_: Any) -> None: ...

    assert not seam.has_receivers(bell)
    bell.connect(receive)
    assert seam.has_receivers(bell)
    bell.disconnect(receive)
    assert not seam.has_receivers(bell)
    assert {"task_success", "task_postrun"} <= {
        name for name in dir(celery.signals) if hasattr(getattr(celery.signals, name), "receivers")
    }


def test_a_result_is_ignored_as_the_message_says_and_else_the_task(app: Celery) -> None:
    keeps, ignores = made(app, shelve, "seam.keeps"), made(app, shelve, "seam.ignores", ignore_result=True)

    def ignored(task: Any, **said: bool) -> bool:
        return seam.ignores_result(task, Context(id="1", **said))

    assert not ignored(keeps)
    assert ignored(ignores)
    assert ignored(keeps, ignore_result=True)
    assert not ignored(ignores, ignore_result=False)


def test_the_headers_of_a_message_that_waited_are_those_that_celery_drops(app: Celery) -> None:
    assert {"x-death", "x-first-death-queue"} <= set(seam.X_DEATH_HEADERS)
    request = Context(id="1", headers={"mine": 1, **dict.fromkeys(seam.X_DEATH_HEADERS, "seen")})

    assert request.as_execution_options()["headers"] == {"mine": 1}


def test_a_request_tells_by_what_its_message_was_sent() -> None:
    request = Context(id="1", root_id="2", chain=["next"], expires="later", retries=3, stamps={"a": 1})

    options = request.as_execution_options()

    assert (options["task_id"], options["root_id"], options["retries"]) == ("1", "2", 3)
    assert (options["chain"], options["expires"]) == (["next"], "later")
    assert {"link", "link_error", "group_id", "chord", "soft_time_limit", "time_limit", "headers"} <= options.keys()


def test_a_child_that_the_worker_ends_exits_as_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billiard.common, "_should_have_exited", [False])
    monkeypatch.setattr(billiard.common, "maybe_setsignal", lambda *_: None)

    with pytest.raises(SystemExit) as ended:
        billiard.common._shutdown_cleanup(signal.SIGTERM, None)  # noqa: SLF001

    assert ended.value.code == seam.EXIT_BY_SIGTERM
