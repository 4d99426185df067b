"""Restart on real workers: asked for by the name of a task, and in the shell."""

import json
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_durable import Runs, TerminalError
from tests.smoke import effects
from tests.smoke.apps import operate
from tests.smoke.nodes import DurableSetup
from tests.smoke.test_shell import shell
from tests.smoke.watching import wait_until_delivered
from tests.waiting import eventually

STEPS = ("reserve", "charge", "ship")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.operate"


def executions(task_id: str) -> list[int]:
    return [effects.count(step, task_id) for step in STEPS]


def asked(durable: DurableSetup, verb: str, *args: Any, **options: Any) -> Any:
    """Ask a worker by the name of a task alone."""
    return durable.app.send_task(f"celery_durable.{verb}", args, options).get(timeout=20)


@pytest.mark.local_nodes(reason="the command runs on this machine")
def test_a_failed_run_is_restarted_from_a_step(durable: DurableSetup) -> None:
    durable.start_worker()
    runs = Runs(durable.app)
    failed = operate.order.delay()
    with pytest.raises(TerminalError):
        failed.get(timeout=20)
    assert executions(failed.id) == [1, 1, 0]
    wait_until_delivered(durable, failed.id)

    answer = asked(durable, "restart", failed.id, from_step="charge", by="ann")
    new = answer["task_id"]
    assert AsyncResult(new, app=durable.app).get(timeout=20) == new
    assert answer == {"task_id": new, "restarted_from": failed.id}
    assert (executions(failed.id), executions(new)) == ([1, 1, 0], [0, 1, 1])
    assert [(action.what, action.by, action.run) for action in runs.get(failed.id).actions] == [("restart", "ann", new)]

    done = shell(durable, "restart", failed.id, "--from", "2", "--by", "bob", "--json")
    assert done.returncode == 0, done.stderr
    third = json.loads(done.stdout)["new_id"]
    eventually(lambda: executions(third) == [0, 1, 1], what="the second restart")


@pytest.mark.local_nodes(reason="the command runs on this machine")
def test_a_failed_run_is_brought_back_and_retried(durable: DurableSetup, tmp_path: Path) -> None:
    durable.start_worker()
    runs = Runs(durable.app)
    failed = operate.order.delay()
    with pytest.raises(TerminalError):
        failed.get(timeout=20)
    wait_until_delivered(durable, failed.id)

    kept = tmp_path / "run.json"
    kept.write_text(shell(durable, "export", failed.id).stdout)
    assert asked(durable, "purge", failed.id) == {"task_id": failed.id}
    assert failed.id not in {run.id for run in runs.list()}
    imported = shell(durable, "import", str(kept), "--by", "eve")
    assert (imported.returncode, imported.stdout) == (0, f"task {failed.id}: imported\n")
    assert [action.what for action in runs.get(failed.id).actions] == ["import"]
    asked(durable, "retry", failed.id)
    eventually(lambda: runs.get(failed.id).state == "SUCCESS", what="the retry of what was imported")
    assert executions(failed.id) == [1, 2, 1]
