"""The commands of the shell on a real Redis: what an operator asks, and what is refused in a sentence."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click
import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from celery_durable import DurableTask, RunOptions
from celery_durable.app.store import Store, be_patient, store_of
from celery_durable.cli import completion, durable, group
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.journal.layout import Status, Wait
from celery_durable.journal.port import LONGEST_READ, NO_RESULT
from celery_durable.operate import examination
from celery_durable.operate import versions as versions_module
from celery_durable.operate.runs import Runs
from celery_durable.records import Run
from celery_durable.redis import survey
from tests.integration.runs import (
    TASK,
    app_at,
    app_for,
    claimed,
    decline,
    died,
    ended,
    execute,
    executions,
    new_id,
    opened,
    server_ms,
    task_of,
    written,
)
from tests.servers import RedisServer, free_port

DAY = 86_400.0


def sells(self: Any, number: int) -> int:
    return self.ctx.run("charge", lambda: number)


def sleeps(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    self.ctx.sleep(timedelta(hours=1), name="until tomorrow")


def fails(self: Any) -> None:
    self.ctx.run("charge", decline, RunOptions(max_attempts=1))


def shell(app: Celery, *arguments: str) -> Result:
    """Run `celery -A <app> durable ...` in this process."""
    return CliRunner().invoke(durable, arguments, obj=CLIContext(app=app, no_color=False, workdir=None))


def documents(done: Result, code: int = 0) -> list[dict[str, Any]]:
    assert done.exit_code == code, done.output
    return [json.loads(line) for line in done.output.splitlines()]


def refusal(done: Result, code: int = 1) -> str:
    """The sentence in which a command was refused."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)
    return " ".join(done.output.split())


def executed(app: Celery, body: Any, *args: Any) -> str:
    """Execute a task as a worker does that knows it; return its id."""
    name = f"shop.{body.__name__}"
    task, task_id = app.tasks.get(name) or task_of(app, body), new_id()
    execute(task, *args, task_id=task_id)
    return task_id


# -- several runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [["--task", "shop.sleeps"], ["--since", "2020-01-01"]])
def test_a_filter_counts_first_and_acts_only_if_it_is_told_so(app: Celery, which: list[str]) -> None:
    """Also a filter that matches one run, or all."""
    task_id = executed(app, sleeps)

    counted = shell(app, "wake", *which)
    assert (counted.exit_code, counted.output) == (
        0,
        "1 run (SUSPENDED 1); nothing is done: say --yes, and they are woken\n",
    )
    [document] = documents(shell(app, "wake", *which, "--json"))
    assert document == {
        "what": "wake", "runs": 1, "states": {"SUSPENDED": 1}, "unknown": [], "allowed": 1, "done": False,
    }  # fmt: skip
    assert Runs(app).get(task_id).actions == ()

    [document] = documents(shell(app, "wake", *which, "--json", "--yes", "--by", "ann"))
    assert document == {"id": task_id, "what": "wake", "done": True, "said": "woken"}
    assert [action.by for action in Runs(app).get(task_id).actions] == ["ann"]


def test_several_ids_are_counted_first_and_one_is_not(app: Celery) -> None:
    ids = [executed(app, sleeps) for _ in range(2)]

    assert shell(app, "wake", *ids, ids[0]).output == (
        "2 runs (SUSPENDED 2); nothing is done: say --yes, and they are woken\n"
    )
    assert shell(app, "wake", ids[0], ids[0]).output == f"task {ids[0]}: woken\n"
    assert [len(Runs(app).get(task_id).actions) for task_id in ids] == [1, 0]


@pytest.mark.parametrize("command", ["list", "purge"])
def test_an_empty_text_is_not_all_runs(app: Celery, command: str) -> None:
    """It may come of a variable that is not set."""
    executed(app, sells, 7)

    assert "it is empty" in refusal(shell(app, command, "--state", "SUCCESS", "--text", ""), code=2)
    assert Runs(app).counts() == {"SUCCESS": 1}


def test_a_list_of_documents_says_beside_them_where_it_goes_on(app: Celery) -> None:
    ids = {executed(app, sleeps), executed(app, sleeps)}

    first, more = shell(app, "list", "--json", "--limit", "1").output.splitlines()
    _, _, cursor = more.partition("more: --cursor ")
    [last] = documents(shell(app, "list", "--json", "--cursor", cursor))

    assert {json.loads(first)["id"], last["id"]} == ids


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_a_filter_that_matches_nothing_does_nothing(app: Celery, yes: list[str]) -> None:
    done = shell(app, "purge", "--task", "nowhere", *yes)

    assert (done.exit_code, done.output) == (0, "no run matches; nothing is done\n")


def test_runs_that_a_command_will_refuse_are_counted_as_such(app: Celery) -> None:
    ids = [executed(app, body) for body in (sleeps, fails, fails)]

    for which in (["--since", "2020-01-01"], ids):
        assert shell(app, "purge", *which).output == (
            "3 runs (FAILURE 2, SUSPENDED 1), 2 in a state that allows it; "
            "nothing is done: say --yes, and they are purged\n"
        )
    assert shell(app, "purge", *ids[1:], "nowhere").output == (
        "3 runs (FAILURE 2), no journal of nowhere, 2 in a state that allows it; "
        "nothing is done: say --yes, and they are purged\n"
    )
    [document] = documents(shell(app, "purge", *ids, "nowhere", "--json"))
    assert document == {
        "what": "purge", "runs": 4, "states": {"FAILURE": 2, "SUSPENDED": 1}, "unknown": ["nowhere"], "allowed": 2,
        "done": False,
    }  # fmt: skip


def test_a_list_counts_all_runs_and_says_so(app: Celery) -> None:
    executed(app, sleeps)
    executed(app, fails)

    assert shell(app, "list", "--state", "FAILURE").output.splitlines()[-1] == "all runs: SUSPENDED 1, FAILURE 1"


def test_a_run_that_is_cancelled_has_not_ended_yet(app: Celery) -> None:
    task_id = executed(app, sleeps)

    assert shell(app, "cancel", task_id).output == f"task {task_id}: told to end\n"


def test_what_cannot_be_done_with_some_runs_is_done_with_the_others(app: Celery) -> None:
    asleep, failed = executed(app, sleeps), executed(app, fails)

    done = documents(shell(app, "wake", "--since", "2020-01-01", "--yes", "--json"), code=1)

    assert {one["id"]: one["done"] for one in done} == {asleep: True, failed: False}


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "an-id", "--state", "FAILURE"]])
def test_runs_are_named_by_ids_or_by_a_filter(app: Celery, arguments: list[str]) -> None:
    assert "name runs by their ids, or by a filter" in refusal(shell(app, *arguments), code=2)


def test_runs_that_nobody_goes_on_with_are_sent_again(
    app: Celery, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = executed(app, sleeps)
    redis_client.zadd(store.keys(task_id).due, {task_id: 0})
    sent: list[str] = []
    monkeypatch.setattr(app, "send_task", lambda *_args, **options: sent.append(options["task_id"]))

    assert documents(shell(app, "recover", "--json")) == [{"sent": 1, "unsent": 0}]
    assert shell(app, "recover").output == "0 runs sent again\n"
    assert sent == [task_id]


# -- bad input ---------------------------------------------------------------------------------------------------------


def _unknown(app: Celery) -> str:
    return new_id()


def _of_a_plain_task(app: Celery) -> str:
    @app.task(shared=False)
    def plain() -> None: ...

    execute(plain, task_id=(task_id := new_id()))
    return task_id


@pytest.mark.parametrize("verb", ["show", "watch", "retry", "cancel", "wake", "purge"])
@pytest.mark.parametrize("make", [_unknown, _of_a_plain_task], ids=["unknown", "plain"])
def test_an_id_without_a_journal_is_refused(app: Celery, verb: str, make: Any) -> None:
    task_id = make(app)

    assert f"task {task_id} " in (said := refusal(shell(app, verb, task_id)))
    assert "no journal" in said


def test_a_journal_that_has_expired_is_passed_over(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    kept, expired = executed(app, sells, 7), executed(app, sells, 8)
    redis_client.delete(store.keys(expired).run)

    assert [run["id"] for run in documents(shell(app, "list", "--json"))] == [kept]
    assert "no journal" in refusal(shell(app, "show", expired))


@pytest.mark.parametrize("verb", ["show", "watch", "retry"])
def test_a_damaged_journal_is_refused(app: Celery, store: Store, redis_client: redis.Redis, verb: str) -> None:
    task_id = executed(app, fails)
    redis_client.hset(store.keys(task_id).run, "step:1", '{"name":')

    assert "is damaged: " in refusal(shell(app, verb, task_id))


def test_a_damaged_journal_shows_nothing_of_what_it_holds(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    task_id = executed(app, sells, 7)
    redis_client.hset(store.keys(task_id).run, "step:1", b'{"value": "\xffhidden"}')  # type: ignore[arg-type]

    assert "hidden" not in refusal(shell(app, "show", task_id))


@pytest.mark.parametrize(
    ("arguments", "text"), [(["restart", "a-run"], None), (["import", "-"], '{"format": 1, "id": "a-run"}')]
)
def test_a_program_reads_what_was_refused_as_it_reads_what_was_done(
    app: Celery, arguments: list[str], text: str | None
) -> None:
    command = CLIContext(app=app, no_color=False, workdir=None)

    [document] = documents(CliRunner().invoke(durable, [*arguments, "--json"], obj=command, input=text), code=1)

    said = document.pop("said")
    assert document == {"id": "a-run", "what": arguments[0], "done": False}
    assert "a-run" in said


def test_a_task_that_is_no_text_is_refused(app: Celery) -> None:
    assert "no text in UTF-8, got" in refusal(shell(app, "list", "--task", "\udcff"), code=2)


def test_an_id_that_is_no_text_is_refused(app: Celery) -> None:
    assert "no text in UTF-8, got '\\udcff'" in refusal(shell(app, "show", "\udcff"), code=2)


def test_a_user_without_a_name_is_named_by_the_number(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    task_id = executed(app, sells, 7)

    [done] = documents(shell(app, "restart", task_id, "--json"))

    [action] = Runs(app).get(done["new_id"]).actions
    assert action.by == f"uid {os.getuid()}"


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_a_live_run_is_neither_retried_nor_purged(app: Celery, store: Store, verb: str) -> None:
    opened(store, task_id := new_id())

    assert "it is STARTED" in refusal(shell(app, verb, task_id))


@pytest.mark.parametrize("verb", ["retry", "cancel", "wake"])
def test_a_revoked_run_stays_revoked(app: Celery, store: Store, verb: str) -> None:
    opened(store, task_id := new_id())
    assert store.runs.terminate(task_id, Status.REVOKED, DAY, "{}")

    assert f"task {task_id} " in refusal(shell(app, verb, task_id))
    assert Runs(app).get(task_id).state == "REVOKED"


@pytest.mark.parametrize("command", ["list", "doctor", "versions"])
def test_an_index_that_is_something_else_is_refused(
    app: Celery, store: Store, redis_client: redis.Redis, command: str
) -> None:
    for shard in store.shards:
        redis_client.set(f"{shard.prefix}index", "of another program")

    assert "a key of the journal holds something else" in refusal(shell(app, command))


def test_a_journal_that_is_something_else_hides_no_other_run(
    app: Celery, store: Store, redis_client: redis.Redis
) -> None:
    opened(store, foreign := new_id())
    redis_client.set(store.keys(foreign).run, "of another program")
    task_id = executed(app, sells, 7)

    assert [run["id"] for run in documents(shell(app, "list", "--json"))] == [task_id]
    assert documents(shell(app, "versions", "--json")) == []
    assert "holds no journal; look at it, and delete it" in refusal(shell(app, "show", foreign))


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "x"],
        ["watch", "x"],
        ["retry", "x"],
        ["purge", "--state", "SUCCESS"],
        ["recover"],
        ["versions"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_redis_a_command_says_so(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_PATIENCE", 0.05)

    said = refusal(shell(app_for(f"redis://127.0.0.1:{free_port()}/0"), *arguments))

    assert f"cannot be used (tried for {1 if arguments == ['recover'] else 0.05} s): ConnectionError: " in said


def test_without_redis_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_PATIENCE", 0.05)
    app = app_for(f"redis://127.0.0.1:{free_port()}/0")

    said, as_json = shell(app, "doctor"), shell(app, "doctor", "--json")

    assert (said.exit_code, as_json.exit_code) == (1, 1)
    assert all(word in said.output for word in ("problem", "redis", "cannot be used", "bring Redis back"))
    finding = json.loads(as_json.output)
    assert (finding["check"], finding["level"], finding["facts"]) == ("redis", "problem", {})


def test_without_a_broker_a_retry_says_so(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = executed(app, fails)

    def unreachable(*_args: Any, **_options: Any) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(app, "send_task", unreachable)

    said = refusal(shell(app, "retry", task_id))
    assert said == f"Error: task {task_id}: nothing was sent, the broker cannot be reached: Connection refused"
    assert Runs(app).get(task_id).actions == ()


def test_a_retry_that_was_sent_is_done_even_if_nobody_can_keep_by_whom(
    app: Celery, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task_id, sent = executed(app, fails), []

    def away(*_args: Any) -> None:
        raise JournalUnavailableError("Redis is away")

    monkeypatch.setattr(store.runs, "note", away)
    monkeypatch.setattr(app, "send_task", lambda *_args, **options: sent.append(options["task_id"]))

    assert "the rest runs again" in Runs(app).retry(task_id, by="ann")

    assert sent == [task_id]
    assert f"task {task_id}: its journal does not say that ann has retried it: Redis is away" in caplog.text


@pytest.mark.parametrize("away", ["redis", "broker"])
def test_a_command_does_not_try_each_run_where_none_can_be_reached(
    app: Celery, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    ids = [executed(app, fails) for _ in range(3)]
    if away == "redis":
        monkeypatch.setattr(group, "_PATIENCE", 0.05)
        app = app_for(f"redis://127.0.0.1:{free_port()}/0")
    else:

        def unreachable(*_args: Any, **_options: Any) -> None:
            raise ConnectionRefusedError("Connection refused")

        monkeypatch.setattr(app, "send_task", unreachable)

    done = shell(app, "retry", *ids, "--yes", "--json")

    [document, line] = done.output.splitlines()
    assert json.loads(document) == {"id": ids[0], "what": "retry", "done": False, "said": line.removeprefix("Error: ")}
    assert (done.exit_code, line.startswith("Error: ")) == (1, True)
    [line] = shell(app, "retry", *ids, "--yes").output.splitlines()
    assert line.startswith("Error: ")


def test_an_app_whose_tasks_do_not_import_is_told(redis_url: str) -> None:
    app = app_for(redis_url, imports=["tests.nowhere"])

    said = refusal(shell(app, "list"))

    cause = "ModuleNotFoundError: No module named 'tests.nowhere'"
    assert said == f"Error: the tasks of the app 'integration' cannot be imported: {cause}"


def test_an_app_without_a_redis_is_told() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)

    assert "no Redis for the journal: set durable_redis_url" in refusal(shell(app, "list"), code=2)


# -- watch -------------------------------------------------------------------------------------------------------------


def test_a_run_is_followed_from_change_to_change(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    changes = Runs(app).follow(task_id, pause=0.01)
    assert next(changes).steps == ()

    written(journal, {"step:1": '{"name":"charge","state":"started","attempts":1,"first":1}'})
    assert _states(next(changes)) == ["started"]
    written(journal, {"step:1": '{"name":"charge","state":"done","attempts":1,"at":2,"ms":1,"value":1}'})
    assert _states(next(changes)) == ["done"]
    journal.suspend(60, {}, waits=Wait.SLEEP)
    assert next(changes).state == "SUSPENDED"
    store.runs.cancel(task_id)
    assert next(changes).until is not None
    opened(store, task_id).finish(Status.FAILED, {"outcome": "{}"})
    assert [run.state for run in changes] == ["FAILURE"]


def _states(run: Run) -> list[str]:
    return [step.state for step in run.steps]


def test_a_journal_is_read_only_if_the_run_has_changed(
    app: Celery, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(store, task_id := new_id())
    looks = 0

    def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 100:
            journal.finish(Status.FAILED, {"outcome": "{}"})

    monkeypatch.setattr("celery_durable.operate.following.time.sleep", sleep)
    before = executions(redis_client, "hgetall")

    assert [run.state for run in Runs(app).follow(task_id)] == ["STARTED", "FAILURE"]

    assert looks == 100
    assert executions(redis_client, "hgetall") - before == 2


def test_a_watch_ends_with_the_run(app: Celery) -> None:
    task_id = executed(app, sells, 7)

    [run] = documents(shell(app, "watch", task_id, "--json"))
    assert (run["state"], [step["name"] for step in run["steps"]]) == ("SUCCESS", ["charge"])
    plain = shell(app, "watch", task_id)
    assert plain.exit_code == 0
    assert plain.output.endswith(" SUCCESS, attempt 1\n")


def test_ctrl_c_leaves_a_watch(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("celery_durable.operate.following.time.sleep", interrupted)

    done = shell(app, "watch", executed(app, sleeps))

    assert done.exit_code == 130
    assert done.output.splitlines()[-1].partition(" ")[2].startswith("SUSPENDED, attempt 1")


# -- doctor ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_server() -> Iterator[RedisServer]:
    """A server as the check at the start wants it."""
    with RedisServer(appendonly=True) as server:
        yield server


@pytest.fixture
def good_app(good_server: RedisServer) -> Iterator[Celery]:
    good_server.client().flushall()
    with app_at(good_server.url()) as app:
        forget_other_tests(app)
        task_of(app, sells)
        yield app


def forget_other_tests(app: Celery) -> None:
    """What other files have decorated without an app belongs to each app, and the doctor looks at all tasks."""
    for foreign in [name for name in app.tasks if not name.startswith(("celery.", "celery_durable."))]:
        del app.tasks[foreign]


@pytest.fixture
def good_client(good_server: RedisServer) -> Iterator[redis.Redis]:
    with good_server.client() as client:
        yield client


def findings(app: Celery, code: int = 0) -> dict[str, dict[str, Any]]:
    """What the doctor says of each check; of several findings, the last one."""
    return {finding["check"]: finding for finding in documents(shell(app, "doctor", "--json"), code=code)}


def levels(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {check: finding["level"] for check, finding in found.items()}


ALL_WELL = dict.fromkeys(("start", "index", "overdue", "stalled", "paused", "leases", "memory"), "ok")


def test_a_doctor_that_finds_nothing_says_so(good_app: Celery) -> None:
    assert levels(findings(good_app)) == ALL_WELL

    executed(good_app, sells, 7)
    executed(good_app, sleeps)
    opened(store_of(good_app), new_id())
    ended(store_of(good_app), delivered=False)

    found = findings(good_app)
    assert levels(found) == ALL_WELL
    assert found["index"]["facts"] == {"entries": 3, "looked_at": 3, "flawed": 0}
    assert found["leases"]["facts"]["leases"] == 2
    assert found["memory"]["facts"]["journals"] == 3
    assert 100 < found["memory"]["facts"]["mean"] <= found["memory"]["facts"]["largest"] < 10_000
    assert "problem" not in shell(good_app, "doctor").output


@pytest.mark.parametrize("state", ["stalled", "paused"])
def test_runs_that_wait_for_people_are_a_problem(good_app: Celery, state: str) -> None:
    store = store_of(good_app)
    for _ in range(2):
        waits = Wait.STALL if state == "stalled" else Wait.PAUSE
        opened(store, new_id()).suspend(3600, {"stalled": "{}"}, waits=waits)

    found = findings(good_app, code=1)

    assert levels(found) == {**ALL_WELL, state: "problem"}
    assert found[state]["facts"] == {"runs": 2, "tasks": {TASK: 2}}
    assert found[state]["found"].startswith(f"2 runs of {TASK} wait for ")
    assert found[state]["advice"] != ""


def test_the_dangers_of_a_server_are_problems(app: Celery) -> None:
    forget_other_tests(app)
    task_of(app, sells)

    start = findings(app, code=1)["start"]

    assert (start["level"], "no append-only file" in start["found"]) == ("problem", True)


def test_the_wrong_app_is_a_problem(good_app: Celery, good_server: RedisServer) -> None:
    with app_at(good_server.url()) as other:
        for name in [name for name, task in other.tasks.items() if isinstance(task, DurableTask)]:
            del other.tasks[name]
        [problem, *_] = [one for one in documents(shell(other, "doctor", "--json"), code=1) if one["check"] == "start"]

    assert problem["found"] == "the app has no durable tasks"


def test_a_run_that_nobody_will_go_on_with_is_a_problem_until_it_is_woken(
    good_app: Celery, good_client: redis.Redis
) -> None:
    keys = store_of(good_app).keys(task_id := executed(good_app, sleeps))
    good_client.zrem(keys.due, task_id)

    index = findings(good_app, code=1)["index"]
    assert (index["level"], index["facts"]["ids"]) == ("problem", [task_id])
    assert "celery durable wake ID" in index["advice"]

    assert shell(good_app, "wake", task_id).exit_code == 0
    assert levels(findings(good_app)) == ALL_WELL


@pytest.mark.parametrize("status", ["running", Status.SUCCEEDED, Status.REVOKED])
def test_what_nobody_will_go_on_with_or_deliver_is_a_problem_until_it_is_woken(
    good_app: Celery, good_client: redis.Redis, status: str
) -> None:
    store, task_id = store_of(good_app), new_id()
    if status == "running":
        died(good_client, store, task_id)
        assert [run.task_id for run in claimed(store)] == [task_id], "it is in the index now"
        good_client.zrem(store.keys(task_id).due, task_id)
    else:
        opened(store, task_id).finish(status, {"outcome": "{}"})
        good_client.zrem(store.keys(task_id).leases, task_id)
    assert findings(good_app, code=1)["index"]["facts"]["ids"] == [task_id]

    assert shell(good_app, "wake", task_id).exit_code == 0

    assert findings(good_app)["index"]["level"] == "ok"
    assert [run.task_id for run in claimed(store)] == [task_id]


def test_a_run_that_somebody_goes_on_with_is_not_woken(app: Celery, store: Store) -> None:
    opened(store, task_id := new_id())

    assert f"task {task_id} does not wait, it is STARTED" in refusal(shell(app, "wake", task_id))


def test_a_run_that_is_sent_in_vain_is_a_problem_until_it_is_woken(good_app: Celery, good_client: redis.Redis) -> None:
    store, task_id = store_of(good_app), new_id()
    died(good_client, store, task_id)
    for _ in range(4):
        assert [run.task_id for run in claimed(store)] == [task_id]
        good_client.zadd(store.keys(task_id).due, {task_id: 0})
    good_client.zadd(store.keys(task_id).due, {task_id: server_ms(good_client) + 3_600_000})

    index = findings(good_app, code=1)["index"]
    assert (index["facts"]["ids"], "sent four times or more" in index["found"]) == ([task_id], True)
    assert shell(good_app, "wake", task_id).exit_code == 0

    assert [run.task_id for run in claimed(store)] == [task_id]
    assert findings(good_app)["index"]["level"] == "ok"


def test_a_crowd_of_others_hides_no_run_that_nobody_will_go_on_with(
    good_app: Celery, good_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_MOST", 1)
    keys = store_of(good_app).keys(task_id := executed(good_app, sleeps))
    good_client.zrem(keys.due, task_id)
    neighbour = next(one for one in iter(new_id, None) if store_of(good_app).keys(one).leases == keys.leases)
    execute(task_of(good_app, fails), task_id=neighbour)

    found: set[str] = set()
    for _ in range(60):  # each examination begins at another name
        done = shell(good_app, "doctor", "--json").output.splitlines()
        found |= {one for finding in map(json.loads, done) for one in finding["facts"].get("ids", ())}

    assert found == {task_id}


def test_runs_that_no_worker_takes_are_a_problem(good_app: Celery, good_client: redis.Redis) -> None:
    store = store_of(good_app)
    died(good_client, store, lost := new_id())
    asleep = executed(good_app, sleeps)
    good_client.zadd(store.keys(asleep).due, {asleep: server_ms(good_client) - 20_000})

    found = findings(good_app, code=1)

    overdue, leases = found["overdue"], found["leases"]
    assert (overdue["level"], overdue["facts"]["runs"], overdue["facts"]["id"] == lost) == ("problem", 2, True)
    assert overdue["facts"]["task"] == TASK
    assert overdue["advice"] == f"start a worker that knows {TASK}; if one runs, its log says why it cannot"
    assert (leases["level"], leases["facts"]["leases"], leases["facts"]["lapsed"]) == ("note", 1, 1)
    assert levels({**found, "overdue": {"level": "ok"}, "leases": {"level": "ok"}}) == ALL_WELL


def test_what_workers_put_right_is_a_note(good_app: Celery, good_client: redis.Redis) -> None:
    store = store_of(good_app)
    expired, moved = executed(good_app, sells, 7), executed(good_app, sleeps)
    good_client.delete(store.keys(expired).run)
    good_client.hset(store.keys(moved).run, mapping={"waits": "retry"})

    gone, elsewhere = (one for one in documents(shell(good_app, "doctor", "--json")) if one["check"] == "index")

    assert (gone["level"], gone["facts"]["ids"]) == ("note", [expired])
    assert (elsewhere["level"], elsewhere["facts"]["ids"]) == ("note", [moved])
    shell(good_app, "list")
    assert levels(findings(good_app)) == ALL_WELL


def test_a_foreign_key_is_a_problem(good_app: Celery, good_client: redis.Redis) -> None:
    foreign = executed(good_app, sells, 7)
    good_client.set(store_of(good_app).keys(foreign).run, "of another program")

    index = findings(good_app, code=1)["index"]

    assert (index["level"], index["facts"]["ids"]) == ("problem", [foreign])
    assert "durable_key_prefix" in index["advice"]


def test_a_large_journal_is_noted(good_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_LARGE", 100)
    task_id = executed(good_app, sells, 7)

    memory = findings(good_app)["memory"]

    assert (memory["level"], memory["facts"]["id"]) == ("note", task_id)


def test_the_doctor_looks_at_a_sample(good_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_MOST_OF_EACH", 1)
    for _ in range(20):
        opened(store_of(good_app), new_id()).suspend(60, {})

    facts = findings(good_app)["index"]["facts"]

    assert facts["entries"] == 20
    assert 0 < facts["looked_at"] <= 16, "one in each shard"


def test_a_crowd_of_processes_is_told_in_short(
    good_app: Celery, good_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_MOST_PROCESSES", 1)
    store = store_of(good_app)
    for process in ("a:1:1", "a:1:1", "b:1:1", "c:1:1"):
        opened(store, task_id := new_id())
        good_client.hset(store.keys(task_id).run, "owner", process)

    first, others = (one for one in documents(shell(good_app, "doctor", "--json")) if one["check"] == "leases")

    assert first["facts"] == {"process": "a:1:1", "leases": 2, "lapsed": 0}
    assert others["facts"] == {"processes": 2, "leases": 2, "lapsed": 0}


# -- versions ----------------------------------------------------------------------------------------------------------


def test_live_runs_are_counted_by_task_and_build(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    for waits, build in ((Wait.SLEEP, "b1"), (Wait.STALL, "b1"), (Wait.RETRY, "b2")):
        opened(store, new_id(), build=build).suspend(60, {}, waits=waits)
    opened(store, new_id(), build="b2")
    died(redis_client, store, new_id(), build="b3", task="shop.refund")
    store.runs.claim(["shop.refund"])  # it is in the index now
    opened(store, new_id(), build="b1").conclude({"outcome": "{}"}, DAY, NO_RESULT)

    found = documents(shell(app, "versions", "--json"))

    counted = {(one["task"], one["build"]): (one["runs"], one["stalled"]) for one in found}
    assert counted == {(TASK, "b1"): (2, 1), (TASK, "b2"): (2, 0), ("shop.refund", "b3"): (1, 0)}
    assert [one["build"] for one in found] == ["b1", "b2", "b3"]
    assert "b2" in shell(app, "versions").output
    assert all(one["oldest"].startswith("20") for one in found)


def test_an_app_without_live_runs_says_so(app: Celery) -> None:
    executed(app, sells, 7)

    assert shell(app, "versions").output == "there are no live runs\n"


def test_live_runs_are_counted_some_at_a_time(app: Celery, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_MOST_COUNTED", 2)
    for number in range(60):
        opened(store, new_id(), task=f"shop.t{number % 2}").suspend(
            60, {}, waits=(Wait.SLEEP, Wait.RETRY)[number % 4 // 2]
        )
    opened(store, new_id())

    [refund, *_] = counted = documents(shell(app, "versions", "--json"))
    assert [one["runs"] for one in counted] == [1, 30, 30]
    assert refund["task"] == TASK

    monkeypatch.setattr(versions_module, "_MOST", 30)
    cut = shell(app, "versions")
    assert cut.exit_code == 0
    assert "there are more live runs than were counted" in cut.output


# -- without Redis -----------------------------------------------------------------------------------------------------


def test_a_command_does_not_wait_for_a_lease_also_if_the_app_has_used_its_store_before() -> None:
    app = app_for(f"redis://127.0.0.1:{free_port()}/0")
    lease = store_of(app).settings.lease
    began = time.monotonic()

    be_patient(app, 0.1)
    with pytest.raises(JournalUnavailableError):
        Runs(app).get("a-run")

    assert time.monotonic() - began < lease / 3


@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "not connected"])
def test_a_redis_that_hangs_is_given_up_as_soon_as_one_that_is_down(
    monkeypatch: pytest.MonkeyPatch, *, is_connected: bool
) -> None:
    monkeypatch.setattr(group, "_PATIENCE", 0.5)
    with RedisServer() as server, app_at(server.url()) as app:
        if is_connected:
            assert shell(app, "list").exit_code == 0
        server.freeze()
        began = time.monotonic()
        said = refusal(shell(app, "list"))
        took = time.monotonic() - began
        server.thaw()

    assert "cannot be used (tried for 0.5 s)" in said
    assert took < LONGEST_READ / 2


# -- completion --------------------------------------------------------------------------------------------------------


def completed(*words: str) -> set[str]:
    """What the shell offers for the last word."""
    *before, incomplete = words
    completer = ShellComplete(celery, {}, "celery", "_CELERY_COMPLETE")
    return {item.value for item in completer.get_completions(["durable", *before], incomplete)}


@pytest.fixture
def app_found(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The app that completion finds, as if `-A` had named it."""
    monkeypatch.setattr(completion, "_app_of", lambda _ctx: app)
    return app


def test_the_shell_completes_verbs_states_tasks_and_ids(app_found: Celery) -> None:
    asleep, failed = executed(app_found, sleeps), executed(app_found, fails)

    assert completed("w") == {"watch", "wake"}
    assert completed("list", "--state", "s") == {"STARTED", "SUSPENDED", "STALLED", "SUCCESS"}
    # Other tests have tasks that every app gets.
    assert completed("list", "--task", "shop.") >= {"shop.sleeps", "shop.fails"}
    assert completed("show", "") == {asleep, failed}
    assert completed("show", failed[:20]) == {failed}
    assert completed("retry", "") == {failed}
    assert completed("wake", asleep, "") == {asleep}


def test_the_shell_completes_the_steps_of_a_run(app_found: Celery) -> None:
    def steps_of_all_sorts(self: Any) -> None:
        for name in ("charge", "label", "label", "tell the customer"):
            self.ctx.run(name, str)

    task_id = executed(app_found, steps_of_all_sorts)

    assert completed("restart", task_id, "--from", "") == {"charge", "2", "3", "4"}
    assert completed("restart", task_id, "--from", "ch") == {"charge"}
    assert completed("restart", "nowhere", "--from", "") == completed("restart", "--from", "") == set()


def test_without_redis_no_ids_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_for(f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setattr(completion, "_app_of", lambda _ctx: app)

    assert completed("show", "") == completed("restart", "x", "--from", "") == set()


@pytest.mark.parametrize("given", [{}, {"app": "tests.nowhere"}])
def test_without_an_app_nothing_is_completed(given: dict[str, str]) -> None:
    ctx = click.Context(celery)
    ctx.params = given

    assert completion.tasks(ctx, None, "") == []
    assert completion.ids()(ctx, None, "") == completion.steps(ctx, None, "") == []
