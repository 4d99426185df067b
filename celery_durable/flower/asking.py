"""Asks Redis for a page, in a thread: the event loop of Flower waits for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tornado.ioloop import IOLoop

from celery_durable.app.store import be_patient
from celery_durable.delivery.message import BROKER_ERRORS
from celery_durable.exceptions import (
    ConfigurationError,
    DurableError,
    JournalUnavailableError,
    JournalUnreadableError,
    RunNotFound,
)
from celery_durable.operate.runs import Runs
from celery_durable.seams.flower import FlowerPage

T = TypeVar("T")

_REDIS_PATIENCE = 2.0
"""Seconds for which the library tries to reach Redis; in a worker it is patient for as long as a lease."""
_PATIENCE = 5.0
"""Seconds after which a page is shown in any case: a broker that is away may be waited for much longer."""
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="durable")
"""Threads that wait for a Redis which is away hold up no other work of Flower's."""

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (RunNotFound, 404),
    (ConfigurationError, 400),
    (JournalUnavailableError, 503),
    (JournalUnreadableError, 500),
    (DurableError, 409),  # what the state of the run forbids
    *((kind, 503) for kind in BROKER_ERRORS),
)


class Refusal(Exception):
    """Something is not shown, or not done.

    Attributes:
        status: of HTTP.
        said: why, in one sentence.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status = status
        self.said = said


async def ask(page: FlowerPage, question: Callable[[Runs], T]) -> T:
    """Ask about the runs of Flower's app.

    Raises:
        Refusal: there is no answer, or it is no.
    """
    try:
        answer = IOLoop.current().run_in_executor(_threads, _answer, page.capp, question)
        return await asyncio.wait_for(answer, _PATIENCE)
    except asyncio.TimeoutError:
        said = f"there was no answer for {_PATIENCE:.0f} s; look at the run before you repeat an action"
        raise Refusal(503, said) from None


def _answer(app: object, question: Callable[[Runs], T]) -> T:
    try:
        return question(_runs(app))
    except tuple(kind for kind, _ in _STATUS) as error:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        raise Refusal(status, str(error) or repr(error)) from error


def _runs(app: object) -> Runs:
    try:
        be_patient(app, _REDIS_PATIENCE)
        return Runs(app)
    except ConfigurationError as error:
        raise Refusal(503, f"{error}; start Flower with your app: celery -A <your app> flower") from error
