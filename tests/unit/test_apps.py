"""Which app a durable task belongs to, and which one is meant in threads that have none: those of web servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakSet

import pytest
from celery import Celery, _state, current_app, shared_task

from celery_durable import AsyncDurableContext, ConfigurationError, DurableContext, DurableTask, cancel, durable_task


@pytest.fixture(autouse=True)
def _a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No app is made yet, and no task."""
    monkeypatch.setattr(_state, "default_app", None)
    monkeypatch.setattr(_state, "_apps", WeakSet())
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    monkeypatch.setattr(_state._tls, "current_app", None)  # noqa: SLF001


@pytest.fixture
def make() -> Iterator[Callable[..., Celery]]:
    """Makes apps, which are closed in the end."""
    made = []

    def make(main: str, **options: Any) -> Celery:
        made.append(app := Celery(main, broker="memory://", backend="cache+memory://", **options))
        return app

    yield make
    for app in made:
        app.close()


def in_request_thread(work: Callable[[], Any]) -> Any:
    """What *work* gives in a thread that nobody has told of an app."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def test_a_request_thread_finds_the_task_in_the_only_app(make: Any) -> None:
    app = make("shop")

    @durable_task(name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    @shared_task(name="apps.plain")
    def plain() -> None: ...

    assert checkout.app is app
    assert in_request_thread(lambda: checkout.app) is app
    # A shared task is Celery's, and makes Celery's own app: that one is nobody's choice.
    assert in_request_thread(lambda: plain.app.main) == "default"
    assert in_request_thread(lambda: checkout.app) is app
    sent_by = in_request_thread(lambda: checkout.delay().app)
    assert sent_by.conf.broker_url == "memory://"


def test_an_app_that_was_made_in_another_thread_is_found_in_the_main_one(make: Any) -> None:
    @durable_task(name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    app = in_request_thread(lambda: make("shop"))
    assert checkout.app is app


def test_of_several_apps_none_is_guessed(make: Any) -> None:
    make("shop"), make("mail")

    @durable_task(name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    for use, what in ((lambda: checkout.name, "task apps.checkout"), (lambda: cancel("id"), r"cancel\(\)")):
        with pytest.raises(ConfigurationError, match=rf"{what}: .*\('mail', 'shop'\): name one with app=\.\.\."):
            in_request_thread(use)


def test_of_several_apps_it_is_the_default_one(make: Any) -> None:
    shop, mail = make("shop"), make("mail")

    @durable_task(name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    shop.set_default()
    assert checkout.app is mail
    assert in_request_thread(lambda: checkout.app) is shop


def test_where_nobody_made_an_app_it_is_celerys_own() -> None:
    @durable_task(name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    assert checkout.app is current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001


def test_inside_of_a_task_it_is_that_of_the_task(make: Any) -> None:
    """Its async body and its steps run in threads of the library, which have no app."""
    shop, _ = make("shop"), make("mail")

    @durable_task(name="apps.child")
    def child(ctx: DurableContext) -> None: ...

    def known() -> str:
        return str(child.app.main)

    @durable_task(name="apps.parent", app=shop)
    async def parent(ctx: AsyncDurableContext) -> list[str]:
        return [known(), await ctx.run("step", known)]

    assert in_request_thread(lambda: parent.apply().get()) == ["shop", "shop"]


@pytest.mark.parametrize("finalized", [False, True])
def test_a_task_with_an_app_is_in_that_app_alone(make: Any, finalized: bool) -> None:
    shop = make("shop")
    if finalized:
        shop.finalize()

    @durable_task(app=shop, name="apps.checkout", time_limit=60)
    def checkout(ctx: DurableContext, order: int) -> int:
        """Pay and ship."""
        return ctx.run("double", lambda: order * 2)

    mail = make("mail")
    assert checkout.app is in_request_thread(lambda: checkout.app) is shop
    assert isinstance(checkout, DurableTask)
    assert (checkout(2), checkout.time_limit, checkout.__doc__) == (4, 60, "Pay and ship.")
    assert "apps.checkout" in shop.tasks
    assert "apps.checkout" not in mail.tasks


def test_a_task_of_an_app_is_registered_though_nobody_uses_it(make: Any) -> None:
    """A worker finds it by its name."""
    shop = make("shop")

    @durable_task(app=shop, name="apps.checkout")
    def _checkout(ctx: DurableContext) -> None: ...

    assert "apps.checkout" in shop.tasks


def test_the_current_app_may_be_given_as_such(make: Any) -> None:
    shop = make("shop")

    @durable_task(app=current_app, name="apps.checkout")
    def checkout(ctx: DurableContext) -> None: ...

    make("mail")
    assert checkout.app is shop


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="app must be a Celery app, got 'shop'"):

        @durable_task(app="shop")  # type: ignore[call-overload]
        def checkout(ctx: DurableContext) -> None: ...
