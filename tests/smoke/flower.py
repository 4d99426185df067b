"""A Flower of the machine's own: its process, and what an operator asks it by HTTP."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from tests.processes import Process
from tests.servers import free_port
from tests.waiting import eventually

RETRY = "celery_durable.retry"
LOGIN = ("operator", "secret")


class Flower:
    """A `celery flower` process and its HTTP interface."""

    def __init__(self, *arguments: str, log: Path, env: dict[str, str], options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._log = log
        here = [f"--port={self.port}", "--address=127.0.0.1"]
        command = [sys.executable, "-m", "celery", *arguments, "flower", *here, *options]
        self._process = Process(command, log, env={**env, "FLOWER_BASIC_AUTH": ":".join(LOGIN)})

    def wait_ready(self) -> None:
        eventually(self._answers, deadline=60, what="an answer of Flower")

    def _answers(self) -> bool:
        assert self._process.exit_code is None, f"Flower ended while it was starting:\n{self._log.read_text()}"
        try:
            # Not a certain page: it may have a prefix.
            return requests.get(self.url("/healthcheck"), timeout=5).status_code in (200, 404)
        except requests.ConnectionError:
            return False

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def retry(self, task_id: str, *, by: str = "async-apply", **options: Any) -> str:
        """Ask for a retry, as an operator does with curl; return the id of the retry task."""
        answer = requests.post(
            self.url(f"/api/task/{by}/{RETRY}"), json={"args": [task_id], **options}, auth=LOGIN, timeout=10
        )
        answer.raise_for_status()
        return answer.json()["task-id"]

    def page(self, task_id: str) -> str:
        """Return the page that shows a task, empty as long as Flower does not know it."""
        answer = requests.get(self.url(f"/task/{task_id}"), auth=LOGIN, timeout=10)
        return answer.text if answer.ok else ""

    def info(self, task_id: str) -> dict[str, Any]:
        """Return what Flower's API knows of a task."""
        answer = requests.get(self.url(f"/api/task/info/{task_id}"), auth=LOGIN, timeout=10)
        return answer.json() if answer.ok else {}

    def end(self) -> None:
        self._process.kill()
