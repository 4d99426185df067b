"""A user of Redis who may do what docs/durability.md grants, and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

import celery_durable
from celery_durable import DurableContext, JournalUnavailableError, RunOptions, durable_task
from celery_durable.app.store import store_of
from celery_durable.journal.port import Result
from celery_durable.operate.runs import Runs
from celery_durable.worker.recovery import Recovery
from celery_durable.worker.startup import risks_of
from tests.groups import MAKES, RedisCluster
from tests.integration.runs import app_at, execute, lapse, new_id, opened, store_at
from tests.processes import PROJECT
from tests.servers import RedisServer, program_of

DAY = 24 * 3600.0
RULES = re.findall(r"^ACL SETUSER (.+)$", (PROJECT / "docs/durability.md").read_text(encoding="utf-8"), re.MULTILINE)
SCRIPTS = (Path(celery_durable.__file__).parent / "redis" / "lua").rglob("*.lua")
WAITING = Result("celery-task-meta-of-a-sleeper", '{"status": "SUSPENDED"}', 60, lasting='{"status": "SUCCESS"')


def documented(index: int) -> list[str]:
    """Return one of the documented lines: what is needed, for the start-up check, for a Cluster, for results."""
    return RULES[index].split()


@durable_task(name="acl.steps")
def steps(ctx: DurableContext) -> str:
    ctx.run("plain", lambda: 1)
    ctx.run("limited", lambda: 2, RunOptions(max_attempts=3))
    return str(ctx.uuid())


@pytest.fixture(scope="module", params=MAKES)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(program=program_of(request.param), appendonly=True) as server:
        yield server


def grant(server: RedisServer, *indices: int) -> str:
    """Make the user with these documented rights only; return its URL."""
    with server.client() as admin:
        admin.execute_command("ACL", "DELUSER", "celery")
        for index in indices:
            admin.execute_command("ACL", "SETUSER", *documented(index))
    return f"redis://celery:secret@127.0.0.1:{server.port}/0"


def test_each_command_of_each_script_is_documented() -> None:
    called = {name.lower() for file in SCRIPTS for name in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())}

    assert len(called) > 10
    granted = {word.removeprefix("+").partition("|")[0] for index in (0, 3, 4, 5) for word in documented(index)}
    assert called <= granted


def test_the_documented_rights_are_enough_for_a_run_with_all_that_may_happen_to_it(server: RedisServer) -> None:
    with app_at(grant(server, 0), durable_lease=5) as app, server.client() as admin:
        store = store_of(app)
        admin.execute_command("ACL", "LOG", "RESET")

        assert execute(app.tasks["acl.steps"], task_id=new_id()) == "SUCCESS"
        journal = opened(store, suspended := new_id())
        journal.prove_lease()
        journal.suspend(0, {})
        journal.close()
        for end in (store.runs.cancel, store.runs.load, store.runs.is_known):
            end(suspended)
        assert store.runs.terminate(suspended, "failed", DAY, "{}")
        opened(store, suspended, reopen="again").close()
        lapse(admin, store, suspended)
        assert sum(len(claims.runs) for claims in store.runs.claim(["shop.order"])) == 1

        assert [entry for entry in admin.acl_log() if "setinfo" not in entry["object"]] == []


def test_the_documented_rights_are_enough_where_results_are_kept_beside_the_journal(server: RedisServer) -> None:
    url = grant(server, 0, 3)
    with app_at(url, durable_lease=5) as app, server.client() as admin:
        app.conf.result_backend = url
        admin.execute_command("ACL", "LOG", "RESET")
        assert execute(app.tasks["acl.steps"], task_id=(task_id := new_id())) == "SUCCESS"

        assert store_of(app).runs.load(task_id)[b"delivered"] == b"1"
        assert admin.exists(f"celery-task-meta-{task_id}") == 1
        assert opened(store_of(app), new_id()).suspend(60, {}, 0.0, WAITING)
        assert [entry for entry in admin.acl_log() if "setinfo" not in entry["object"]] == []


def test_a_state_is_not_stored_where_nobody_knows_what_it_would_replace(server: RedisServer) -> None:
    with app_at(grant(server, 0, 3)) as app, server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "celery", "-get")
        admin.set(WAITING.key, '{"status": "SUCCESS"}')

        assert not opened(store_of(app), new_id()).suspend(60, {}, 0.0, WAITING)

        assert admin.get(WAITING.key) == '{"status": "SUCCESS"}'


def test_the_documented_rights_are_enough_to_look_at_runs(server: RedisServer) -> None:
    with app_at(grant(server, 0, 4, 5), durable_lease=5) as app, server.client() as admin:
        runs, ids = Runs(app), [new_id(), new_id()]
        for task_id in ids:
            assert execute(app.tasks["acl.steps"], task_id=task_id) == "SUCCESS"
        admin.execute_command("ACL", "LOG", "RESET")

        assert {run.id for run in runs.list(task="acl.steps")} >= set(ids)
        assert runs.counts()["SUCCESS"] >= 2
        assert [runs.get(task_id).state for task_id in ids] == ["SUCCESS", "SUCCESS"]
        runs.wake(runs.restart(ids[1]))
        runs.purge(ids[0])
        Recovery(app).recover()

        assert [entry for entry in admin.acl_log() if "setinfo" not in entry["object"]] == []


def test_a_worker_without_the_rights_to_sweep_the_index_recovers_all_the_same(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with app_at(grant(server, 0), durable_lease=5) as app:
        assert execute(app.tasks["acl.steps"], task_id=new_id()) == "SUCCESS"

        assert Recovery(app).recover() == (0, 0)

    [record] = [record for record in caplog.records if "index" in record.message]
    assert "expired runs cannot leave the index" in record.message
    assert "refused the journal" in record.message


def test_other_keys_and_commands_are_out_of_reach(server: RedisServer) -> None:
    url = grant(server, 0, 1, 2)
    with redis.Redis.from_url(url) as client:
        for forbidden in (["GET", "durable:x"], ["HGETALL", "celery"], ["FLUSHALL"], ["CONFIG", "SET", "save", ""]):
            with pytest.raises(NoPermissionError):
                client.execute_command(*forbidden)
    with (
        store_at(url, durable_key_prefix="other:", durable_lease=1) as store,
        pytest.raises(JournalUnavailableError, match="permission"),
    ):
        opened(store, new_id())


def test_without_the_right_to_ask_the_start_says_that_it_cannot_know(server: RedisServer) -> None:
    with app_at(grant(server, 0), durable_lease=1) as app:
        (risk,) = risks_of(app, [app.tasks["acl.steps"]])

    assert "whether the server may lose journals cannot be checked" in risk.text
    assert "info" in risk.text.lower()


def test_with_the_right_to_ask_the_start_has_nothing_to_say(server: RedisServer) -> None:
    with app_at(grant(server, 0, 1), durable_lease=1) as app:
        assert list(risks_of(app, [app.tasks["acl.steps"]])) == []


def test_with_info_alone_only_appendfsync_is_not_known(server: RedisServer) -> None:
    url = grant(server, 0)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "celery", "+info")
    with app_at(url, durable_lease=1) as app:
        (note,) = risks_of(app, [app.tasks["acl.steps"]])

    assert "appendfsync (not known)" in note.text


@pytest.mark.parametrize("make", MAKES)
def test_the_documented_rights_are_enough_in_a_cluster(make: str) -> None:
    with RedisCluster(program_of(make)) as cluster:
        for one in cluster.running:
            grant(one, 0, 1, 2)
        url = cluster.url.replace("redis+cluster://", "redis+cluster://celery:secret@", 1)
        with app_at(url, durable_lease=5) as app:
            for _ in range(6):
                assert execute(app.tasks["acl.steps"], task_id=new_id()) == "SUCCESS"
