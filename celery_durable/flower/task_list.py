"""Flower's own list of tasks. Flower knows a task by its events, and nobody sends one when a worker is gone."""

from __future__ import annotations

from typing import Any

from celery import states

from celery_durable.delivery.backend import WAITING_STATES
from celery_durable.operate.states import ENDED
from celery_durable.records import STARTED
from celery_durable.seams.flower import FlowerPage, FlowerTaskList, known_task, rows_of, set_row_state, set_state

from .asking import Refusal, ask


class TaskList(FlowerTaskList):
    """``/tasks/datatable``: the rows that somebody looks at. The state of a durable one is that of its journal."""

    _answer: dict[str, Any] | None = None

    async def get(self) -> None:  # type: ignore[override]
        super().get()
        if self._answer is None:
            return
        rows = rows_of(self._answer)
        try:
            recorded = await ask(self, lambda runs: runs.states(rows))
        except Refusal:
            recorded = {}  # what the events have said is shown
        for task_id, state in recorded.items():
            correct(self, task_id, state)
            if (task := known_task(self, task_id)) is not None:  # Flower forgets old ones
                set_row_state(rows[task_id], task.state)
        super().write(self._answer)

    async def post(self) -> None:
        await self.get()

    def write(self, chunk: Any) -> None:
        """Keep the rows that Flower would send."""
        if self._answer is None and rows_of(chunk):
            self._answer = chunk
        else:
            super().write(chunk)


def correct(page: FlowerPage, task_id: str, state: str) -> None:
    """Tell Flower the state that the journal of a task says, if its events have not said so."""
    task = known_task(page, task_id)
    if task is not None and is_news(task.state, state):
        set_state(page, task, state)


def is_news(told: str, recorded: str) -> bool:
    """Whether what the journal has *recorded* replaces what events have *told*.

    Celery says RETRY and SUCCESS of some runs that go on: of a retry by ``autoretry_for``, say. This stays.
    """
    if recorded in ENDED:
        return told != recorded
    if recorded == STARTED:
        return told in (*WAITING_STATES, states.FAILURE)
    return told not in ENDED and told != recorded
