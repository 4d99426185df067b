"""`celery -A app durable ...` on real workers, as an operator types it: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from celery_durable.operate.runs import Runs
from tests.processes import Process
from tests.servers import free_port
from tests.smoke.apps import operate
from tests.smoke.nodes import BACKEND_DB, BROKER_DB, DurableSetup
from tests.smoke.watching import elapse, wait_until_suspended
from tests.waiting import eventually

HOUR = 3600

pytestmark = pytest.mark.local_nodes(reason="the command runs on this machine")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.operate"


def command(durable: DurableSetup, *arguments: str) -> list[str]:
    """The words of a command of `celery durable`."""
    server = durable.broker_server
    app = ["-A", "tests.smoke.apps.operate", "-b", server.url(BROKER_DB), "--result-backend", server.url(BACKEND_DB)]
    return [sys.executable, "-m", "celery", *app, "durable", *arguments]


def run(words: list[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal."""
    env = {**os.environ, **(env or {})}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=env, errors="replace")


def shell(durable: DurableSetup, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(command(durable, *arguments))


@contextmanager
def started(words: list[str], log: Path) -> Iterator[Process]:
    """A command that goes on until it is ended, and is ended at the latest here."""
    process = Process(words, log)
    try:
        yield process
    finally:
        process.kill()


def documents(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_shell_shows_where_a_run_is_until_it_has_ended(durable: DurableSetup, tmp_path: Path) -> None:
    durable.start_worker()
    slept = operate.sleeps.delay(HOUR)
    wait_until_suspended(durable, slept.id)
    with started(command(durable, "watch", slept.id), log := tmp_path / "watch.log") as watch:
        [listed] = documents(shell(durable, "list", "--state", "suspended", "--json"))
        assert (listed["id"], listed["task"], listed["args"]) == (slept.id, operate.sleeps.name, [HOUR])
        [shown] = documents(shell(durable, "show", slept.id, "--json"))
        assert shown["waits_for"] == "the end of a sleep: 'pause'"
        assert [(step["name"], step["state"]) for step in shown["steps"]] == [("before", "done"), ("pause", "sleeping")]
        eventually(lambda: "SUSPENDED, attempt 1" in log.read_text(), what="the first line of the watch")

        elapse(durable, slept.id)
        assert slept.get(timeout=30) == 2

        eventually(lambda: Runs(durable.app).counts() == {"SUCCESS": 1}, what="the end")
        table = shell(durable, "list").stdout
        assert slept.id in table
        assert "SUCCESS 1" in table
        assert "\x1b[" not in table, "colours are for terminals"
        assert watch.wait(deadline=10) == 0
        assert log.read_text().splitlines()[-1].endswith(" SUCCESS, attempt 2")


def test_ctrl_c_leaves_a_watch_quietly(durable: DurableSetup, tmp_path: Path) -> None:
    durable.start_worker()
    slept = operate.sleeps.delay(HOUR)
    wait_until_suspended(durable, slept.id)
    with started(command(durable, "watch", slept.id), log := tmp_path / "watch.log") as watch:
        eventually(lambda: "SUSPENDED" in log.read_text(), what="the first line of the watch")
        before = log.read_text()

        watch.send(signal.SIGINT)

        assert watch.wait(deadline=10) == 130
        assert log.read_text() == before


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
    said = "3 runs (FAILURE 3); nothing is done: say --yes, and they are retried\n"
    assert (counted.returncode, counted.stdout) == (0, said)
    assert runs.counts() == {"FAILURE": 3, "SUCCESS": 1}
    retried = documents(shell(durable, "retry", "--state", "FAILURE", "--yes", "--json"))
    assert {one["id"] for one in retried if one["done"]} == {one.id for one in failed}
    eventually(lambda: runs.counts() == {"SUCCESS": 4}, what="their retries")

    refused = shell(durable, "wake", slept.id)
    assert refused.returncode == 1
    assert f"task {slept.id} does not wait, it is SUCCESS" in refused.stderr
    purged = documents(shell(durable, "purge", "--task", operate.fails_once.name, "--yes", "--json"))
    assert len(purged) == 3
    assert runs.counts() == {"SUCCESS": 1}


def test_the_shell_refuses_in_a_sentence(durable: DurableSetup) -> None:
    for arguments, code, said in (
        (["show", "nowhere"], 1, "task nowhere has no journal: is the id right? The task has not begun, "),
        (["list", "--state", "DONE"], 2, "state must be one of STARTED, RETRY"),
        (["list", "--since", "soon"], 2, "'soon' is no time: write it as 2030-01-31T12:00:00+00:00"),
        (["list", "--cursor", "x"], 2, "cursor must be that of a page of runs, got 'x'"),
    ):
        done = shell(durable, *arguments)

        assert (done.returncode, done.stdout) == (code, "")
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_a_name_that_the_terminal_cannot_show_is_escaped(durable: DurableSetup) -> None:
    durable.start_worker()
    named = operate.names.delay("Größe")
    assert named.get(timeout=30) == "Größe"

    done = run(command(durable, "show", named.id), {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})

    assert (done.returncode, done.stderr) == (0, "")
    assert r"Gr\xf6\xdfe" in done.stdout


def test_a_reader_that_goes_away_gets_no_traceback(durable: DurableSetup) -> None:
    for arguments in (["list"], ["list", "--json"]):
        piped = subprocess.Popen(
            command(durable, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert piped.stdout is not None
        piped.stdout.close()

        _, said = piped.communicate(timeout=60)
        assert "Traceback" not in said
        assert "Error" not in said


def test_without_redis_a_command_says_so_within_seconds(durable: DurableSetup) -> None:
    durable.broker_server.stop()
    began = time.monotonic()

    done = shell(durable, "list")

    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be used (tried for 2 s)" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 10


def test_an_app_that_was_not_named_is_told() -> None:
    done = run([sys.executable, "-m", "celery", "durable", "list"])

    assert (done.returncode, done.stdout) == (2, "")
    assert "no app is named: celery -A <your app> durable" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_app_that_does_not_import_is_told() -> None:
    done = run([sys.executable, "-m", "celery", "-A", "tests.smoke.apps.nowhere", "durable", "list"])

    assert (done.returncode, done.stdout) == (2, "")
    assert "The module tests.smoke.apps.nowhere was not found" in done.stderr
    assert "Traceback" not in done.stderr


def test_flower_is_started_with_the_pages_of_durable_runs(durable: DurableSetup, tmp_path: Path) -> None:
    here = f"127.0.0.1:{free_port()}"
    address, _, port = here.partition(":")
    words = command(durable, "flower", f"--address={address}", f"--port={port}")
    with started(words, log := tmp_path / "flower.log") as flower:

        def page() -> str:
            assert flower.exit_code is None, log.read_text()
            try:
                return requests.get(f"http://{here}/durable", timeout=5).text
            except requests.ConnectionError:
                return ""

        assert "there are no runs" in eventually(page, deadline=30, what="an answer of Flower").lower()


def test_the_shell_completes_what_is_typed(durable: DurableSetup) -> None:
    durable.start_worker()
    failed = operate.fails_once.delay()
    eventually(lambda: Runs(durable.app).counts() == {"FAILURE": 1}, what="the failure")
    words = ["celery", *command(durable, "retry", "")[3:]]
    typed = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}

    done = run([str(Path(sys.executable).with_name("celery"))], {"_CELERY_COMPLETE": "bash_complete", **typed})

    assert (done.returncode, done.stdout.split()) == (0, [f"plain,{failed.id}"])
