"""What an operator is shown of runs on real workers, by Python and by the shell."""

import json
import subprocess
import sys
from typing import Any

import pytest

from celery_durable import cancel
from celery_durable.operate.runs import Runs
from tests.smoke import effects
from tests.smoke.apps import operate
from tests.smoke.nodes import BACKEND_DB, BROKER_DB, DurableSetup
from tests.smoke.watching import elapse, wait_until_suspended
from tests.waiting import eventually

HOUR = 3600


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.operate"


def shell(durable: DurableSetup, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `celery durable`, without a terminal."""
    server = durable.broker_server
    app = ["-A", "tests.smoke.apps.operate", "-b", server.url(BROKER_DB), "--result-backend", server.url(BACKEND_DB)]
    command = [sys.executable, "-m", "celery", *app, "durable", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def documents(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.local_nodes(reason="the command runs on this machine")
def test_the_shell_shows_where_a_run_is_until_it_has_ended(durable: DurableSetup) -> None:
    durable.start_worker()
    slept = operate.sleeps.delay(HOUR)
    wait_until_suspended(durable, slept.id)

    [listed] = documents(shell(durable, "list", "--state", "suspended", "--json"))
    assert (listed["id"], listed["task"], listed["args"]) == (slept.id, operate.sleeps.name, [HOUR])
    [shown] = documents(shell(durable, "show", slept.id, "--json"))
    assert shown["waits_for"] == "the end of a sleep: 'pause'"
    assert [(step["name"], step["state"]) for step in shown["steps"]] == [("before", "done"), ("pause", "sleeping")]
    assert documents(shell(durable, "list", "--state", "FAILURE", "--json")) == []

    elapse(durable, slept.id)
    assert slept.get(timeout=30) == 2

    eventually(lambda: Runs(durable.app).counts() == {"SUCCESS": 1}, what="the end")
    table = shell(durable, "list").stdout
    assert slept.id in table
    assert "SUCCESS 1" in table
    [shown] = documents(shell(durable, "show", slept.id, "--json"))
    assert [attempt["how"] for attempt in shown["attempts"]] == ["SUSPENDED", "SUCCESS"]
    assert "\x1b[" not in table, "colours are for terminals"


@pytest.mark.local_nodes(reason="the command runs on this machine")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nowhere"], 1, "task nowhere has no journal: it has not begun"),
        (["list", "--state", "DONE"], 2, "state must be one of STARTED, RETRY"),
        (["list", "--since", "soon"], 2, "'soon' is no time: write it as 2030-01-31T12:00:00+00:00"),
        (["list", "--cursor", "x"], 2, "cursor must be that of a page of runs, got 'x'"),
    ],
)
def test_the_shell_refuses_in_a_sentence(durable: DurableSetup, arguments: list[str], code: int, said: str) -> None:
    done = shell(durable, *arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_attempts_that_died_and_runs_that_were_cancelled_are_told(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf={"durable_lease": 2})
    runs = Runs(durable.app)
    slept = operate.sleeps.delay(HOUR)
    wait_until_suspended(durable, slept.id)

    cancel(slept.id, app=durable.app)
    eventually(lambda: runs.get(slept.id).state == "REVOKED", what="the cancellation")
    assert [attempt.how for attempt in runs.get(slept.id).attempts] == ["SUSPENDED", "REVOKED"]

    held = operate.holds.delay()
    effects.wait_until_blocked("held")
    [running] = runs.list(state="STARTED")
    assert running.id == held.id
    assert running.lease is not None
    worker.kill()
    durable.start_worker()
    eventually(lambda: len(runs.get(held.id).attempts) == 2, deadline=60, what="another attempt")
    effects.release("held")

    eventually(lambda: runs.get(held.id).state == "SUCCESS", what="the end")
    assert [attempt.how for attempt in runs.get(held.id).attempts] == ["DIED", "SUCCESS"]
    assert runs.counts() == {"REVOKED": 1, "SUCCESS": 1}


@pytest.mark.local_nodes(reason="the command runs on this machine")
def test_the_shell_sends_runs_on_their_way(durable: DurableSetup) -> None:
    durable.start_worker()
    slept = operate.sleeps.delay(HOUR)
    failed = [operate.fails_once.delay() for _ in range(3)]
    wait_until_suspended(durable, slept.id)
    runs = Runs(durable.app)
    eventually(lambda: runs.counts() == {"SUSPENDED": 1, "FAILURE": 3}, what="the failures")

    [woken] = documents(shell(durable, "wake", slept.id, "--by", "ann", "--json"))
    assert (woken["done"], woken["said"]) == (True, "woken")
    assert slept.get(timeout=30) == 2
    assert [(action.what, action.by) for action in runs.get(slept.id).actions] == [("wake", "ann")]

    counted = shell(durable, "retry", "--state", "FAILURE")
    assert (counted.returncode, counted.stdout) == (0, "3 runs; nothing is done: say --yes, and they are retried\n")
    assert runs.counts() == {"FAILURE": 3, "SUCCESS": 1}
    retried = documents(shell(durable, "retry", "--state", "FAILURE", "--yes", "--json"))
    assert {one["id"] for one in retried if one["done"]} == {one.id for one in failed}
    eventually(lambda: runs.counts() == {"SUCCESS": 4}, what="their retries")

    refused = shell(durable, "wake", slept.id)
    assert refused.returncode == 1
    assert f"task {slept.id} does not wait: its run is succeeded" in refused.stderr
    purged = documents(shell(durable, "purge", "--task", operate.fails_once.name, "--yes", "--json"))
    assert len(purged) == 3
    assert runs.counts() == {"SUCCESS": 1}
