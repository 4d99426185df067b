"""The pages: all runs, one run, and the panel on Flower's own page of a task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from tornado.web import authenticated

from celery_durable.operate.runs import Page
from celery_durable.operate.states import STATES
from celery_durable.records import Run, StepRecord
from celery_durable.seams.flower import ENCODER, FlowerPage, known_task, refreshes_itself
from celery_durable.task.of_app import durable_tasks

from . import shown
from .access import why_closed
from .asking import Refusal, ask
from .filters import Filters, field, number
from .task_list import correct
from .timeline import Bar, Timeline
from .verbs import buttons

_STEPS = 200
"""So many steps of a run are on one page."""
_LAST_STEPS = 8
_LAST_ATTEMPTS = 12
"""So many are in a panel."""
_NEWS, _NEWS_OF_ENDED = 2_000, 10_000
"""Milliseconds until a page asks for news: of what is live, and of a run that has ended."""


class DurablePage(FlowerPage):
    """A page of ours."""

    def show(self, template: str, *, refresh: int, **facts: Any) -> None:
        if self.settings.get("xsrf_cookies"):
            _ = self.xsrf_token  # sets the cookie that the script sends back
        self.render(
            template,
            shown=shown,
            zone=self.capp.timezone,
            now=_now(),
            closed=why_closed(self),
            refresh=refresh if refreshes_itself(self) else 0,
            **facts,
        )

    def get_template_namespace(self) -> dict[str, Any]:
        return {**super().get_template_namespace(), ENCODER: shown.utf8}

    def refuse(self, template: str, refusal: Refusal, **facts: Any) -> None:
        self.set_status(refusal.status)
        self.show(template, refresh=_NEWS, said=refusal.said, **facts)


class RunsPage(DurablePage):
    """``/durable``: the runs, the newest first."""

    @authenticated
    async def get(self) -> None:
        filters, page, said = Filters.none(), Page([], None), ""
        counts: dict[str, int] = {}
        try:
            filters = Filters.of(self)
            asked = filters.asked()
            # Side by side: a list waits for Redis twice, and nobody waits for the counts besides.
            page, counts = await asyncio.gather(
                ask(self, lambda runs: runs.list(**asked)),
                ask(self, lambda runs: runs.counts(task=filters.tasks or None)),
            )
        except Refusal as refusal:
            said = refusal.said
            self.set_status(refusal.status)
        self.show(
            "durable_runs.html",
            # Behind the first page nothing is new.
            refresh=0 if filters.cursor else _NEWS,
            page=page,
            counts=counts,
            are_counted=filters.are_counted,
            filters=filters,
            field=field,
            states=[state for state in STATES if state in counts or state in filters.states],
            task_names=sorted(durable_tasks(self.capp)),
            said=said,
        )


class RunPage(DurablePage):
    """``/durable/run/<id>``: all that is known of a run. Its steps are shown some at a time."""

    @authenticated
    async def get(self, task_id: str) -> None:
        try:
            first = number(self, "from", 1)
            run = await ask(self, lambda runs: runs.get(task_id))
        except Refusal as refusal:
            self.refuse("durable_refused.html", refusal, task_id=task_id)
            return
        first = min(max(first, 1), max(len(run.steps), 1))
        self.show(
            "durable_run.html",
            refresh=_NEWS if run.ended is None else _NEWS_OF_ENDED,
            task_id=run.id,
            run=run,
            buttons=buttons(run),
            timeline=(line := Timeline(run, _now())),
            attempts=run.attempts[0 if self.get_query_argument("attempts", "") == "all" else -_LAST_ATTEMPTS :],
            rows=_rows(run, line, first - 1, first - 1 + _STEPS),
            first=first,
            most=_STEPS,
            is_known=known_task(self, task_id) is not None,
        )


class PanelPage(DurablePage):
    """``/durable/panel/<id>``: what Flower's own page of a task shows besides. Empty for a task without a journal."""

    @authenticated
    async def get(self, task_id: str) -> None:
        try:
            run = await ask(self, lambda runs: runs.get(task_id))
        except Refusal as refusal:
            if refusal.status != 404:
                self.refuse("durable_panel_refused.html", refusal)
            return
        correct(self, run.id, run.state)
        line = Timeline(run, _now())
        self.show(
            "durable_panel.html",
            refresh=_NEWS if run.ended is None else _NEWS_OF_ENDED,
            run=run,
            buttons=buttons(run),
            timeline=line,
            rows=_rows(run, line, max(len(run.steps) - _LAST_STEPS, 0), len(run.steps)),
        )


def _rows(run: Run, line: Timeline, begin: int, end: int) -> Sequence[tuple[StepRecord, list[Bar]]]:
    """Some steps of a run, each with its bars."""
    ended = [step.at for step in run.steps[:begin] if step.at is not None]
    steps = run.steps[begin:end]
    return list(zip(steps, line.steps(steps, ended[-1] if ended else run.created), strict=True))


def _now() -> datetime:
    return datetime.now(timezone.utc)
