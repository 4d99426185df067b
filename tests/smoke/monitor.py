"""A monitor in the process of a test, which sees the events of all workers."""

import threading
from typing import Any

from celery.events.state import State
from celery.result import AsyncResult

from tests.waiting import eventually


class Monitor:
    """What Flower is made of: a receiver of all events, and Celery's own idea of what they mean."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = State()
        self._events: list[dict[str, Any]] = []
        self._seen: list[tuple[str, str, str]] = []
        self._sees = threading.Event()
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()
        eventually(self._sees_what_is_sent, what="an event that this monitor sees")

    def end(self) -> None:
        self._receiver.should_stop = True
        self._thread.join()

    def _sees_what_is_sent(self) -> bool:
        with self._app.events.default_dispatcher() as dispatcher:
            dispatcher.send("monitor-hello")
        return self._sees.is_set()

    def _watch(self) -> None:
        with self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self._on_event})
            self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _on_event(self, event: dict[str, Any]) -> None:
        self._sees.set()
        self.state.event(event)
        self._events.append(event)
        if event["type"].startswith("task-"):
            task_id = event["uuid"]
            self._seen.append((task_id, event["type"].removeprefix("task-"), self.state.tasks[task_id].state))

    def history(self, result: AsyncResult) -> list[str]:
        """Return the events of a task, each with the state that Flower shows from then on."""
        return [f"{kind} {state}" for task_id, kind, state in self._seen if task_id == result.id]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind, in full."""
        return [event for event in self._events if event["type"] == kind]

    def of(self, group: str) -> list[dict[str, Any]]:
        """Return the events whose type begins with this word."""
        return [event for event in self._events if event["type"].startswith(f"{group}-")]

    def wait_for(self, result: AsyncResult, *history: str) -> None:
        eventually(lambda: self.history(result)[-len(history) :] == [*history], what=f"{history} as the last events")

    def counted(self, result: AsyncResult, kind: str) -> int:
        """Return what an exporter counts."""
        return sum(task_id == result.id and kind == seen for task_id, seen, _ in self._seen)
