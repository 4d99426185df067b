"""The commands of the shell on a real Redis: what an operator asks, and what is refused in a sentence."""

from __future__ import annotations

import json
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

from celery_durable import RunOptions, TerminalError
from celery_durable.app.store import Store
from celery_durable.cli import completion, durable, group
from celery_durable.journal.layout import Status, Wait
from celery_durable.operate.following import follow
from celery_durable.operate.runs import Runs
from celery_durable.records import Run
from tests.integration.runs import (
    app_for,
    execute,
    executions,
    new_id,
    opened,
    task_of,
    written,
)
from tests.servers import free_port

DAY = 86_400.0


def sells(self: Any, number: int) -> int:
    return self.ctx.run("charge", lambda: number)


def sleeps(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    self.ctx.sleep(timedelta(hours=1), name="until tomorrow")


def fails(self: Any) -> None:
    self.ctx.run("charge", _decline, RunOptions(max_attempts=1))


def _decline() -> None:
    raise TerminalError("declined")


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
    assert document == {"what": "wake", "runs": 1, "states": {"SUSPENDED": 1}, "done": False}
    assert Runs(app).get(task_id).actions == ()

    [document] = documents(shell(app, "wake", *which, "--json", "--yes", "--by", "ann"))
    assert document == {"id": task_id, "what": "wake", "done": True, "said": "woken"}
    assert [action.by for action in Runs(app).get(task_id).actions] == ["ann"]


def test_several_ids_are_counted_first_and_one_is_not(app: Celery) -> None:
    ids = [executed(app, sleeps) for _ in range(2)]

    assert shell(app, "wake", *ids, ids[0]).output == "2 runs; nothing is done: say --yes, and they are woken\n"
    assert shell(app, "wake", ids[0], ids[0]).output == f"task {ids[0]}: woken\n"
    assert [len(Runs(app).get(task_id).actions) for task_id in ids] == [1, 0]


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_a_filter_that_matches_nothing_does_nothing(app: Celery, yes: list[str]) -> None:
    done = shell(app, "purge", "--task", "nowhere", *yes)

    assert (done.exit_code, done.output) == (0, "no run matches; nothing is done\n")


def test_what_cannot_be_done_with_some_runs_is_done_with_the_others(app: Celery) -> None:
    asleep, failed = executed(app, sleeps), executed(app, fails)

    done = documents(shell(app, "wake", "--since", "2020-01-01", "--yes", "--json"), code=1)

    assert {one["id"]: one["done"] for one in done} == {asleep: True, failed: False}


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "an-id", "--state", "FAILURE"]])
def test_runs_are_named_by_ids_or_by_a_filter(app: Celery, arguments: list[str]) -> None:
    assert "name runs by their ids, or by a filter" in refusal(shell(app, *arguments), code=2)


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


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_a_live_run_is_neither_retried_nor_purged(app: Celery, store: Store, verb: str) -> None:
    opened(store, task_id := new_id())

    assert "its run is running" in refusal(shell(app, verb, task_id))


@pytest.mark.parametrize("verb", ["retry", "cancel", "wake"])
def test_a_revoked_run_stays_revoked(app: Celery, store: Store, verb: str) -> None:
    opened(store, task_id := new_id())
    assert store.runs.terminate(task_id, Status.REVOKED, DAY, "{}")

    assert f"task {task_id} " in refusal(shell(app, verb, task_id))
    assert Runs(app).get(task_id).state == "REVOKED"


@pytest.mark.parametrize("command", ["list"])
def test_an_index_that_is_something_else_is_refused(
    app: Celery, store: Store, redis_client: redis.Redis, command: str
) -> None:
    for shard in store.shards:
        redis_client.set(f"{shard.prefix}index", "of another program")

    assert "a key of the journal holds something else" in refusal(shell(app, command))


def test_a_journal_that_is_something_else_is_refused(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    redis_client.set(store.keys(task_id := new_id()).run, "of another program")

    assert "holds no journal; look at it, and delete it" in refusal(shell(app, "show", task_id))


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "x"],
        ["watch", "x"],
        ["retry", "x"],
        ["purge", "--state", "SUCCESS"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_redis_a_command_says_so(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_PATIENCE", 0.05)

    said = refusal(shell(app_for(f"redis://127.0.0.1:{free_port()}/0"), *arguments))

    assert "did not take the journal within 0.05 s" in said


def test_without_a_broker_a_retry_says_so(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = executed(app, fails)

    def unreachable(*_args: Any, **_options: Any) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(app, "send_task", unreachable)

    said = refusal(shell(app, "retry", task_id))
    assert said == f"Error: task {task_id}: nothing was sent, the broker cannot be reached: Connection refused"
    assert Runs(app).get(task_id).actions == ()


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
    changes = follow(Runs(app), task_id, pause=0.01)
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

    assert [run.state for run in follow(Runs(app), task_id)] == ["STARTED", "FAILURE"]

    assert looks == 100
    assert executions(redis_client, "hgetall") - before == 4


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
    assert completed("list", "--task", "shop.") == {"shop.sleeps", "shop.fails"}
    assert completed("show", "") == {asleep, failed}
    assert completed("show", failed[:20]) == {failed}
    assert completed("retry", "") == {failed}
    assert completed("wake", asleep, "") == {asleep}


def test_without_redis_no_ids_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_for(f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setattr(completion, "_app_of", lambda _ctx: app)

    assert completed("show", "") == set()


@pytest.mark.parametrize("given", [{}, {"app": "tests.nowhere"}])
def test_without_an_app_nothing_is_completed(given: dict[str, str]) -> None:
    ctx = click.Context(celery)
    ctx.params = given

    assert completion.tasks(ctx, None, "") == []
    assert completion.ids()(ctx, None, "") == []
