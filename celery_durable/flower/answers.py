"""The API: ``/api/durable/...``. It is open to whom Flower's own API is open."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from tornado.web import authenticated

from celery_durable.operate.record_json import record_json
from celery_durable.seams.flower import FlowerAPI, knows_users

from .access import user_of, why_closed
from .asking import Refusal, ask
from .filters import Filters, check_names
from .verbs import carry_out


def _answered(answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[None] | None]:
    """Send what the function returns as JSON; or a sentence, and the status, if it refuses."""

    @authenticated
    @wraps(answer)
    async def answered(self: FlowerAPI, *path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        try:
            said = record_json(await answer(self, *path))
            self.set_header("Content-Type", "application/json; charset=UTF-8")
        except Refusal as refusal:
            said = refusal.said
            self.set_status(refusal.status)
            self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(said)

    return answered


class DurableAnswer(FlowerAPI):
    """An answer of ours."""

    def write_error(self, status_code: int, **facts: Any) -> None:
        # What was wrong may be quoted, and older versions of Flower say that it is HTML.
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        if status_code == 401 and knows_users(self):
            # Asked so, a browser sends the password that it has for the pages. Flower's own API does not ask.
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        super().write_error(status_code, **facts)


class RunsAnswer(DurableAnswer):
    """``GET /api/durable/runs``: a page of runs, and how many there are in each state."""

    @_answered
    async def get(self) -> Any:
        check_names(self)
        asked = Filters.of(self).asked()
        page, counts = await ask(self, lambda runs: (runs.list(**asked), runs.counts()))
        return {"runs": list(page), "cursor": page.cursor, "counts": counts}


class RunAnswer(DurableAnswer):
    """``GET /api/durable/run/<id>``: a run with its attempts, steps and actions."""

    @_answered
    async def get(self, task_id: str) -> Any:
        return await ask(self, lambda runs: runs.get(task_id))


class VerbAnswer(DurableAnswer):
    """``POST /api/durable/run/<id>/<verb>``: somebody acts on a run."""

    @_answered
    async def post(self, task_id: str, name: str) -> Any:
        if closed := why_closed(self):
            raise Refusal(403, closed)
        facts, by = self._facts(), user_of(self)
        return await ask(self, lambda runs: carry_out(runs, name, task_id, by, facts))

    def _facts(self) -> dict[str, str]:
        """What the request says. It is JSON, which a form of another site cannot send."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, f"a request is application/json, got {kind or 'nothing'}")
        try:
            facts = json.loads(self.request.body or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the request is no JSON: {error}") from None
        if not isinstance(facts, dict) or not all(value is None or isinstance(value, str) for value in facts.values()):
            raise Refusal(400, f"the request must be an object of texts, got {json.dumps(facts)[:200]}")
        return {name: value for name, value in facts.items() if value is not None}
