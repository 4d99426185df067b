"""Attempt after attempt of a run, without a worker: as one would, that finds the run and sends it again."""

import json
from typing import Any

import redis
from celery import Celery
from celery.app.trace import build_tracer

from celery_durable.app.store import store_of
from celery_durable.delivery.call import Call

LONG_AGO, FAR_AHEAD = 1, 4_102_444_800_000
"""Times for waits that are over, and for waits that are not, whenever this runs: ms since the epoch."""
MOST_ATTEMPTS = 20
LIVE = ("running", "suspended")


class Golden:
    """A run, and the journal that it has."""

    def __init__(self, app: Celery, client: "redis.Redis", task: str, task_id: str) -> None:
        self.app = app
        self.client = client
        self.task = app.tasks[task]
        self.task_id = task_id
        self.keys = store_of(app).keys(task_id)

    @property
    def journal(self) -> dict[str, str]:
        """The journal: of the values in it none is bytes that are no text."""
        return self.client.hgetall(self.keys.run)

    def begin(self, *args: Any) -> None:
        """Let the first message arrive."""
        self._attempt(args, {}, 0, {})

    def go_on(self, **header: Any) -> None:
        """Let the run be due, or its lease lapse, and a message arrive that a worker has sent on its behalf."""
        fields = self.journal
        # To be cancelled is what ends a wait early.
        until = FAR_AHEAD if fields.get("cancel") == "requested" else LONG_AGO
        for name, text in fields.items():
            if name.startswith("step:") and '"until"' in text:
                woken = {**json.loads(text), "until": until}
                self.client.hset(self.keys.run, name, json.dumps(woken, separators=(",", ":")))
        if fields["status"] == "suspended":
            self.client.hset(self.keys.run, "due", LONG_AGO)
        self.client.zadd(self.keys.leases, {self.task_id: LONG_AGO}, xx=True)
        call = Call.load(fields["call"], frozenset(self.app.conf.accept_content))
        resume = json.loads(fields.get("resume") or "{}")
        header = {**resume.get("header", {}), **(header or {"hint": 1})}
        self._attempt(call.args, call.kwargs, resume.get("retries", 0), {"celery_durable": header})

    def reach_the_end(self) -> None:
        """Attempt after attempt, until the run has ended and that is delivered."""
        for _ in range(MOST_ATTEMPTS):
            if self.journal["status"] not in LIVE and "delivered" in self.journal:
                return
            self.go_on()
        raise AssertionError(f"the run does not end: {self.journal}")

    @property
    def end(self) -> dict[str, Any]:
        """How the run has ended, for whoever looks at its result."""
        result = self.app.AsyncResult(self.task_id)
        ended = {"status": self.journal["status"], "state": result.state}
        value = result.result
        return {**ended, "result": repr(value) if isinstance(value, BaseException) else value}

    def finish(self) -> None:
        """What comes next: the rest of a live run, a Retry of one that has failed, a copy of any other's message."""
        if self.journal["status"] == "failed":
            self.go_on(reopen="a Retry")
        elif self.journal["status"] not in LIVE:
            self.go_on()
        self.reach_the_end()

    def _attempt(self, args: Any, kwargs: Any, retries: int, headers: dict[str, Any]) -> None:
        message = {
            "id": self.task_id,
            "root_id": self.task_id,
            "retries": retries,
            "headers": headers,
            "delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": False, "priority": 0},
            "hostname": "golden@host",
        }
        build_tracer(self.task.name, self.task, app=self.app)(self.task_id, args, kwargs, message)
