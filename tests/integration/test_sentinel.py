"""The journal on a master that Sentinels watch: a failover amid an attempt, and how the URL is read."""

from collections.abc import Iterator

import pytest
from celery import Celery

from celery_durable import ConfigurationError
from celery_durable.app.store import store_of
from celery_durable.worker.startup import risks_of
from tests.groups import MAKES, MASTER_NAME, Watched, program_or_skip
from tests.integration.four_steps import STEPS, STEPS_ASYNC, amid, executed
from tests.integration.runs import app_at, app_for, execute, new_id
from tests.servers import OLDEST, free_port, program_of


@pytest.fixture(scope="module", params=[*MAKES, OLDEST])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A group that tests leave as it is, but for who is the master."""
    with Watched(program_or_skip(request.param)) as group:
        yield group


@pytest.fixture
def app(watched: Watched) -> Iterator[Celery]:
    with app_at(watched.url, result_backend_transport_options={"master_name": MASTER_NAME}) as app:
        yield app


def fields_of(watched: Watched, app: Celery, task_id: str) -> dict[str, str]:
    with watched.master.client() as client:
        return client.hgetall(store_of(app).keys(task_id).run)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", [STEPS, STEPS_ASYNC])
def test_an_attempt_goes_on_across_the_death_of_the_master(make: str, name: str) -> None:
    task_id, options = new_id(), {"master_name": MASTER_NAME}
    with (
        Watched(program_of(make)) as doomed,
        app_at(doomed.url, result_backend_transport_options=options) as app,
    ):
        before = doomed.master.port
        amid.append(doomed.fail_over)

        assert execute(app.tasks[name], task_id=task_id) == "SUCCESS"

        assert doomed.master.port != before
        assert executed == [1, 2, 3, 4]
        fields = fields_of(doomed, app, task_id)
        assert (fields["status"], fields["attempt"]) == ("succeeded", "1")
        assert sum(name.startswith("step:") for name in fields) == 4


def test_a_connection_that_still_reaches_a_demoted_master_finds_the_new_one(watched: Watched, app: Celery) -> None:
    """The old master lives, and refuses to be written to."""
    task_id, old = new_id(), watched.master

    def demote() -> None:
        with watched.sentinels[0].client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER_NAME)
        watched.wait_until_master_is(new)
        with old.client() as client:
            # As the Sentinels do in 10 s; they would also cut the connections.
            client.execute_command("REPLICAOF", "127.0.0.1", new.port)

    new = watched.replica
    amid.append(demote)

    assert execute(app.tasks[STEPS], task_id=task_id) == "SUCCESS"

    assert (watched.master.port, watched.replica.port) == (new.port, old.port)
    assert executed == [1, 2, 3, 4]
    assert fields_of(watched, app, task_id)["attempt"] == "1"


def test_sentinels_that_are_gone_are_passed_over(watched: Watched) -> None:
    gone = f"sentinel://127.0.0.1:{free_port()}/0"
    options = {"master_name": MASTER_NAME}
    with app_at(f"{gone};{watched.url}", result_backend_transport_options=options) as app:
        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"


def test_the_name_of_the_master_may_stand_in_the_url(watched: Watched) -> None:
    first, *others = watched.url.split(";")
    with app_at(";".join([f"{first}?master_name={MASTER_NAME}", *others])) as app:
        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"


def test_the_broker_s_sentinels_serve_with_the_broker_s_options(watched: Watched) -> None:
    with app_at(watched.url) as app:
        app.conf.update(
            durable_redis_url=None, broker_url=watched.url, broker_transport_options={"master_name": MASTER_NAME}
        )

        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"


def test_the_database_of_the_url_is_used(watched: Watched) -> None:
    task_id, options = new_id(), {"master_name": MASTER_NAME}
    with app_at(watched.url.replace("/0", "/3"), result_backend_transport_options=options) as app:
        execute(app.tasks[STEPS], task_id=task_id)

        with watched.master.client(3) as client:
            assert client.hget(store_of(app).keys(task_id).run, "status") == "succeeded"


def test_without_the_name_of_the_master_the_error_says_what_to_set() -> None:
    with pytest.raises(ConfigurationError, match=r"result_backend_transport_options = \{'master_name'"):
        store_of(app_for("sentinel://:secret@one;sentinel://two"))


def test_a_master_with_a_replica_is_named_as_what_may_fail_over(watched: Watched, app: Celery) -> None:
    with watched.master.client() as client:
        assert client.info("replication")["connected_slaves"] == 1

    (note,) = [risk for risk in risks_of(app, [app.tasks[STEPS]]) if "failover" in risk.text]

    assert 'durable_journal_sync="replicas"' in note.text
    assert note.text.count("sentinel://") == 3
