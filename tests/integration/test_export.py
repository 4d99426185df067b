"""A run as a document: exported, kept elsewhere, and brought back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner, Result

from celery_durable import RunNotFound, RunNotImportableError, RunNotPurgeableError, Runs, TerminalError
from celery_durable.app.store import Store
from celery_durable.cli import durable
from celery_durable.journal.entries import done_entry
from tests.integration.runs import deliver, execute, new_id, opened, sent, task_of
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("empty_broker")


def sells(self: Any, number: int) -> Any:
    self.ctx.run("reserve", lambda: {"number": number})
    if not self.mended:
        self.ctx.run("charge", declined)
    return self.ctx.run("charge", lambda: "charged")


def declined() -> None:
    raise TerminalError("declined")


def failed(app: Celery, store: Store, client: redis.Redis) -> tuple[Any, str]:
    """Execute a run until it has failed, and its failure is delivered."""
    task, task_id = task_of(app, sells), new_id()
    task.mended = False
    assert execute(task, 7, task_id=task_id) == "FAILURE"
    eventually(lambda: client.hexists(store.keys(task_id).run, "delivered"), what="the delivery")
    return task, task_id


def test_an_exported_failure_is_brought_back_and_retried(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    task, task_id = failed(app, store, redis_client)
    before, shown = redis_client.hgetall(store.keys(task_id).run), runs.get(task_id)

    document = json.loads(json.dumps(runs.export(task_id)))
    assert (document["format"], document["id"]) == (1, task_id)
    redis_client.flushdb()
    assert runs.import_(document, by="ann") == task_id

    found = runs.get(task_id)
    assert [(action.what, action.by) for action in found.actions] == [("import", "ann")]
    assert {**vars(found), "actions": ()} == vars(shown)
    assert [run.id for run in runs.list(state="FAILURE", task="shop.sells")] == [task_id]
    assert runs.counts() == {"FAILURE": 1}
    keys = store.keys(task_id)
    assert 7 * 86_400_000 - 60_000 < redis_client.pttl(keys.run) <= 7 * 86_400_000
    assert (redis_client.zscore(keys.leases, task_id), redis_client.zscore(keys.due, task_id)) == (None, None)
    after = redis_client.hgetall(keys.run)
    assert after.items() - before.items() == {("actions", after["actions"])}
    assert before.items() - after.items() == {("fence", before["fence"])}
    task.mended = True

    runs.retry(task_id)

    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert [(step.name, step.executions) for step in runs.get(task_id).steps] == [("reserve", 1), ("charge", 1)]


def test_a_value_that_is_no_text_comes_back(runs: Runs, store: Store, redis_url: str) -> None:
    journal = opened(store, task_id := new_id(), call=json.dumps({"args": [], "kwargs": {}, "options": {}}))
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(60)
    journal.prove_lease()
    keys = store.keys(task_id)
    with redis.Redis.from_url(redis_url) as binary:
        binary.hset(keys.run, "note", b"\xff\x00")
        binary.hset(keys.run, "call", json.dumps({"args": [], "kwargs": {}, "options": {"task_id": task_id}}))
        document = json.loads(json.dumps(runs.export(task_id)))
        assert document["fields"]["note"] == {"base64": "/wA="}
        binary.delete(keys.run)

        runs.import_(document)

        assert binary.hget(keys.run, "note") == b"\xff\x00"


def test_a_large_journal_comes_back_whole(app: Celery, runs: Runs, store: Store, redis_client: redis.Redis) -> None:
    _, task_id = failed(app, store, redis_client)
    document = runs.export(task_id)
    document["fields"] |= {f"step:{n}": done_entry("é", 1, 1, 1, {}, '"é"') for n in range(3, 12_000)}
    redis_client.flushdb()

    runs.import_(document)

    assert redis_client.hlen(store.keys(task_id).run) == len(document["fields"])  # "actions", and no "fence"


def test_nothing_is_imported_over_a_run(app: Celery, runs: Runs, store: Store, redis_client: redis.Redis) -> None:
    _, task_id = failed(app, store, redis_client)
    document, before = runs.export(task_id), redis_client.hgetall(store.keys(task_id).run)

    with pytest.raises(RunNotImportableError, match=f"^task {task_id} cannot be imported: it has a journal here"):
        runs.import_(document)

    assert redis_client.hgetall(store.keys(task_id).run) == before


def test_a_run_that_had_not_ended_is_not_imported(runs: Runs, store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    documents = [runs.export(task_id)]
    journal.suspend(60, {})
    documents.append(runs.export(task_id))
    journal.finish("failed", {"outcome": "{}"})
    documents.append(runs.export(task_id))
    redis_client.flushdb()

    said = []
    for document in documents:
        with pytest.raises(RunNotImportableError, match="a run must not live twice") as refused:
            runs.import_(document)
        said.append(str(refused.value).partition("when it was exported, ")[2].partition(".")[0])

    assert said == ["it was STARTED", "it was RETRY", "its outcome was not delivered"]
    assert redis_client.dbsize() == 0


def changed(**facts: Any) -> Any:
    def change(document: dict[str, Any]) -> Any:
        document["fields"] |= {name: text for name, text in facts.items() if text is not None}
        for name in [name for name, text in facts.items() if text is None]:
            del document["fields"][name]
        return document

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: None, "this is no export of a run: 'None' has no format"),
        (lambda _: [1], "this is no export of a run"),
        (lambda document: {**document, "format": "1"}, "has no format"),
        (lambda document: {**document, "format": 2}, r"has format 2, this version reads up to 1: upgrade"),
        (lambda document: {**document, "id": 5}, "does not say the id of its run, got 5"),
        (lambda document: {**document, "id": "other"}, "task other is damaged: its call is of task "),
        (lambda document: {**document, "fields": []}, "its fields cannot be read"),
        (lambda document: {**document, "fields": {"status": 5}}, "its fields cannot be read"),
        (lambda document: {**document, "fields": {"status": {"base64": "?"}}}, "its fields cannot be read"),
        (lambda document: {**document, "fields": {}}, "its journal has layout 'none'"),
        (changed(v="9"), "its journal has layout '9', this version reads up to '2': upgrade"),
        (changed(call=None, seed=None), "is damaged: it has no call, seed"),
        (changed(status="gone"), "is damaged: its status is 'gone'"),
        (changed(created="soon"), "is damaged: invalid literal for int"),
        (changed(call="{"), "is damaged: "),
        (changed(outcome="["), "is damaged: "),
        (changed(**{"step:1": "rubbish"}), "is damaged: entry step:1 is damaged"),
        (changed(**{"step:x": '{"name":"a","state":"done","attempts":1}'}), "entry step:x has no position"),
        (changed(actions="x"), "is damaged: "),
    ],
)
def test_what_is_no_sound_export_is_refused_in_a_sentence(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, change: Any, said: str
) -> None:
    _, task_id = failed(app, store, redis_client)
    document = change(copy.deepcopy(runs.export(task_id)))
    redis_client.flushdb()

    with pytest.raises(RunNotImportableError, match=said):
        runs.import_(document)

    assert redis_client.dbsize() == 0


def test_an_unknown_run_is_not_exported(runs: Runs) -> None:
    with pytest.raises(RunNotFound, match=r"^task nowhere has no journal"):
        runs.export("nowhere")


def test_each_verb_is_a_task(app: Celery, runs: Runs, store: Store, redis_client: redis.Redis) -> None:
    _, task_id = failed(app, store, redis_client)

    def ask(verb: str, *args: Any, **options: Any) -> Any:
        answer = app.tasks[f"celery_durable.{verb}"].apply(args, json.loads(json.dumps(options))).get()
        return json.loads(json.dumps(answer))

    document = ask("export", task_id, by="ann")
    assert document == runs.export(task_id)
    assert ask("purge", task_id, by="ann") == {"task_id": task_id}
    assert runs.counts() == {}
    assert ask("import", document, by="ann") == {"task_id": task_id}
    restarted = ask("restart", task_id, by="ann")
    assert restarted["restarted_from"] == task_id
    assert ask("wake", restarted["task_id"], by="ann") == {"task_id": restarted["task_id"]}
    assert ask("cancel", restarted["task_id"], by="bob") == {"task_id": restarted["task_id"]}
    actions = runs.get(restarted["task_id"]).actions
    assert [(action.what, action.by) for action in actions] == [("restart", "ann"), ("wake", "ann"), ("cancel", "bob")]


def test_an_act_whose_reply_is_lost_is_done_once_and_not_refused(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command is sent again over another connection."""
    task, task_id = failed(app, store, redis_client)
    document, ask = runs.export(task_id), store.runs._ask  # noqa: SLF001

    def ask_twice(asked: str, *commands: Any, **options: Any) -> list[Any]:
        ask(asked, *commands, **options)
        return ask(asked, *commands, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store.runs, "_ask", ask_twice)
        runs.purge(task_id)
        with pytest.raises(RunNotPurgeableError, match="has no journal"):
            runs.purge(task_id)
        runs.import_(document)
        runs.retry(task_id)

    assert [action.what for action in runs.get(task_id).actions] == ["import", "retry"]
    task.mended = True
    assert deliver(task, sent(app)[0]) == "SUCCESS"


# -- in the shell


@pytest.fixture
def shell(app: Celery) -> Callable[..., Result]:
    """Run a command of `celery durable` for the app."""
    return lambda *arguments, **options: CliRunner().invoke(durable, arguments, obj=SimpleNamespace(app=app), **options)


def test_the_shell_exports_to_a_file_and_imports_from_the_standard_input(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, shell: Callable[..., Result]
) -> None:
    _, task_id = failed(app, store, redis_client)

    document = shell("export", task_id).output
    line = shell("export", task_id, "--json").output
    assert json.loads(document) == json.loads(line) == runs.export(task_id)
    assert line.count("\n") == 1
    over = shell("import", "-", input=document)
    assert (over.exit_code, "it has a journal here" in over.output) == (1, True)
    runs.purge(task_id)
    done = shell("import", "-", "--by", "ann", "--json", input=document)

    assert done.exit_code == 0
    assert json.loads(done.output) == {"id": task_id, "what": "import", "done": True, "said": "imported"}
    assert [(action.what, action.by) for action in runs.get(task_id).actions] == [("import", "ann")]


@pytest.mark.parametrize(
    ("arguments", "given", "code", "said"),
    [
        (("export", "nowhere"), "", 1, "task nowhere has no journal"),
        (("import", "-"), "{", 1, "<stdin> cannot be read as JSON"),
        (("import", "-"), "[" * 100_000, 1, "<stdin> cannot be read as JSON"),
        (("import", "-"), "[]", 1, "this is no export of a run"),
        (("import", "-", "--json"), '{"format": 1}', 1, '{"id": null, "what": "import", "done": false, "said": "'),
        (("import", "no such file"), "", 2, "no such file"),
        (("restart", "nowhere"), "", 1, "task nowhere has no journal"),
        (("restart",), "", 2, "Missing argument 'ID'"),
    ],
)
def test_the_shell_refuses_in_a_sentence(
    shell: Callable[..., Result], arguments: tuple[str, ...], given: str, code: int, said: str
) -> None:
    refused = shell(*arguments, input=given)

    assert refused.exit_code == code
    assert said in " ".join(refused.output.split())
    assert isinstance(refused.exception, SystemExit)


def test_a_request_that_is_delivered_twice_is_done_once_and_not_refused(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    _, task_id = failed(app, store, redis_client)
    document = runs.export(task_id)

    for name, argument in (("celery_durable.purge", task_id), ("celery_durable.import", document)):
        request = new_id()
        for redelivered in (False, True):
            done = execute(app.tasks[name], argument, task_id=request, delivery_info={"redelivered": redelivered})
            assert done == "SUCCESS"
        assert execute(app.tasks[name], argument, task_id=new_id()) == "FAILURE"

    assert [action.what for action in runs.get(task_id).actions] == ["import"]
