"""By which names of gevent and greenlet running code is reached: each fails here when it is not what it was."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable.drivers.interruption import current_target
from celery_durable.user_code import user_code_boundary

gevent = pytest.importorskip("gevent")
event = pytest.importorskip("gevent.event")
greenlet = pytest.importorskip("greenlet")


class Blow:
    """Ends what it hits."""

    overrun: Any = KeyError("struck")

    def arrives(self) -> bool:
        return True


@user_code_boundary
def wait_for_ever() -> None:
    event.AsyncResult().get(timeout=60)


def test_user_code_in_a_greenlet_of_gevents_is_reached() -> None:
    places: list[Any] = []

    def body() -> str:
        places.append(current_target())
        try:
            wait_for_ever()
        except KeyError as error:
            return str(error)
        return "it ended by itself"

    running = gevent.spawn(body)
    gevent.sleep(0)  # it begins, and waits
    assert places[0] is not None
    places[0].send(Blow())

    assert running.get(timeout=10) == "'struck'"


def test_code_of_the_library_in_a_greenlet_is_let_alone() -> None:
    places: list[Any] = []
    go_on = event.Event()

    def body() -> str:
        places.append(current_target())
        go_on.wait(timeout=60)
        return "it ended by itself"

    running = gevent.spawn(body)
    gevent.sleep(0)
    places[0].send(Blow())
    gevent.sleep(0)
    go_on.set()

    assert running.get(timeout=10) == "it ended by itself"


def test_another_greenlet_is_not_the_main_thread() -> None:
    """As those of eventlet."""
    assert current_target() is not None

    assert greenlet.greenlet(current_target).switch() is None


def test_a_greenlet_that_is_killed_ends_by_what_is_no_failure() -> None:
    from celery_durable.steps.failures import NOT_A_FAILURE

    assert greenlet.GreenletExit in NOT_A_FAILURE
    assert not issubclass(greenlet.GreenletExit, Exception)
