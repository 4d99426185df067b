"""Runs in this process: journals by themselves, and tasks executed as a worker executes them, without a worker."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any
from unittest import mock
from unittest.mock import Mock
from uuid import uuid4

import redis
from celery import Celery
from celery.app.trace import build_tracer

from celery_durable import DurableTask, TerminalError, durable_task
from celery_durable.app.address import Address
from celery_durable.app.store import Store, _stores, store_of
from celery_durable.delivery.call import Call
from celery_durable.journal.entries import done_entry
from celery_durable.journal.layout import Fields
from celery_durable.journal.port import Delivery, Opened
from celery_durable.redis.client.connection import JournalConnection
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.runs import Claimed, Claims
from celery_durable.worker.request import DurableRequest
from tests.servers import RedisServer

TASK = "shop.order"

HINT = {"headers": {"celery_durable": {"hint": 1, "retries": 0}}}
"""What a worker sends when the time of a run has come."""


def app_for(url: str, **conf: Any) -> Celery:
    """Return an app whose only Redis is that of the journals."""
    app = Celery("integration", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(durable_redis_url=url, **conf)
    return app


@contextmanager
def app_at(url: str, **conf: Any) -> Iterator[Celery]:
    """Yield such an app; afterwards close its connections to the journals, also those of attempts that never ended."""
    app = app_for(url, **conf)
    connections: list[Any] = []
    make_connector = Address.connector

    def make_watched_connector(address: Address, owner: Celery | None, *longest_read: float) -> Any:
        connector = make_connector(address, owner, *longest_read)
        make_connection: Any = connector.make_connection
        if owner is app:
            connector.make_connection = lambda: connections.append(made := make_connection()) or made
        return connector

    with mock.patch.object(Address, "connector", make_watched_connector):
        yield app
    if store := _stores.get(app):
        # Its thread is not to read what is closed here.
        for pool, keeper in store._keepers.items():  # noqa: SLF001
            keeper.forget()
            pool.forget()
    for connection in connections:
        connection.disconnect()


@contextmanager
def store_at(url: str, **conf: Any) -> Iterator[Store]:
    with app_at(url, **conf) as app:
        yield store_of(app)


def decline() -> None:
    """The action of a step that fails for good."""
    raise TerminalError("declined")


def task_of(app: Celery, body: Any, **options: Any) -> Any:
    """Make a task of the base class that belongs to this app alone."""
    made = app.task(base=DurableTask, bind=True, shared=False, name=f"shop.{body.__name__}", **options)(body)
    return app.tasks[made.name]


def durable_task_of(app: Celery, body: Any, **options: Any) -> Any:
    """Make a durable task that this app knows."""
    name = f"shop.{new_id()}"  # such tasks go to every app there will be
    durable_task(name=name, shared=False, **options)(body)
    app.finalize()
    return app.tasks[name]


def delivery(task_id: str, **facts: Any) -> Delivery:
    """Return a first message of a run; `facts` are what is special about it."""
    return Delivery(**{"task_id": task_id, "task": TASK, "fingerprint": "f1", "call": "{}", **facts})


def new_id() -> str:
    return str(uuid4())


def opened(store: Store, task_id: str, **facts: Any) -> RedisJournal:
    """Begin an attempt."""
    journal = store.journal(task_id)
    verdict = journal.open(delivery(task_id, **facts))
    assert isinstance(verdict, Opened), verdict
    return journal


def lapse(client: "redis.Redis", store: Store, task_id: str) -> None:
    """Let the lease of a run end now, as if its worker had died a while ago."""
    assert client.zadd(store.keys(task_id).leases, {task_id: 0}, xx=True, ch=True) == 1


def state(client: "redis.Redis", store: Store, task_id: str) -> dict[str, Any]:
    """Return all that Redis holds of a run; of its TTL, whether it has one."""
    keys = store.keys(task_id)
    return {
        "fields": client.hgetall(keys.run),
        "lease": client.zscore(keys.leases, task_id),
        "due": client.zscore(keys.due, task_id),
        "expires": client.pttl(keys.run) > 0,
    }


def text(fields: Fields) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def execute(task: Any, *args: Any, task_id: str, kwargs: dict[str, Any] | None = None, **request: Any) -> Any:
    """Execute a task as the process of a worker does; return its state."""
    message = {
        "id": task_id,
        "root_id": task_id,
        "retries": 0,
        "delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": False, "priority": 0},
        "hostname": "nowhere",
        **request,
    }
    tracer = build_tracer(task.name, task, app=task.app)
    outcome = tracer(task_id, args, kwargs or {}, message)
    return outcome.info.state if outcome.info else "SUCCESS"


def execute_sent(task: Any, client: "redis.Redis", message: Any) -> Any:
    """Execute what was published, a signature, when it is due; return its state."""
    task_id = message.options["task_id"]
    client.hset(store_of(task.app).keys(task_id).run, "due", 0)
    args, kwargs = json.loads(json.dumps([message.args, message.kwargs]))
    facts = {name: message.options[name] for name in ("retries", "headers") if name in message.options}
    return execute(task, *args, task_id=task_id, kwargs=kwargs, **facts)


def saved_call(task: Any, client: "redis.Redis", task_id: str) -> Call:
    """Return the call that the journal keeps of a run."""
    text: Any = client.hget(store_of(task.app).keys(task_id).run, "call")
    return Call.load(text, task.durable_attempt_settings.accept)


def sent(app: Celery) -> list[Any]:
    """Take the messages that the broker of this process holds."""
    messages = []
    with app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        try:
            while True:
                messages.append(queue.get_nowait())
                messages[-1].ack()
        except Empty:
            return messages


def deliver(task: Any, message: Any, **facts: Any) -> Any:
    """Execute a message as a worker does that has received it just now; return its state."""
    request = DurableRequest(message, app=task.app, task=task).request_dict
    known = {name: request.pop(name) for name in ("task", "args", "kwargs", "id")}
    return execute(task, *known["args"], task_id=known["id"], kwargs=known["kwargs"], **{**request, **facts})


def request_of(task: Any, task_id: str, *args: Any, **options: Any) -> DurableRequest:
    """Make what the main process of a worker makes of the first message of a run; `options` are what it adds."""
    headers = {"id": task_id, "task": task.name, "root_id": task_id, "parent_id": None, "retries": 0}
    message: Any = Mock(headers=headers, payload=([*args], {}, {}), body=b"", delivery_info={}, properties={})
    return DurableRequest(message, app=task.app, task=task, **options)


def look(store: Store, *tasks: str) -> list[Claims]:
    """Look once at all shards."""
    return store.runs.claim(tasks or (TASK,))


def claimed(store: Store, *tasks: str) -> list[Claimed]:
    """Look once at all shards; return the runs that were found."""
    return [run for claims in look(store, *tasks) for run in claims.runs]


def ids(store: Store, *tasks: str) -> list[str]:
    """Look once at all shards; return the ids of the runs that were found."""
    return [run.task_id for run in claimed(store, *tasks)]


def died(client: "redis.Redis", store: Store, task_id: str, **facts: Any) -> RedisJournal:
    """Begin an attempt whose lease has lapsed."""
    journal = opened(store, task_id, **facts)
    lapse(client, store, task_id)
    return journal


def overdue(client: "redis.Redis", store: Store, task_id: str) -> None:
    """Let the time of a run among those that wait come now."""
    assert client.zadd(store.keys(task_id).due, {task_id: 0}, xx=True, ch=True) == 1


def server_ms(client: "redis.Redis") -> int:
    """Return the time of the server."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def ended(store: Store, status: str = "succeeded", *, delivered: bool) -> RedisJournal:
    """Begin an attempt, and end its run."""
    journal = opened(store, new_id())
    journal.finish(status, {"outcome": '{"value":1}'})
    if delivered:
        journal.deliver(24 * 3600.0)
        journal.prove_lease()  # reads the replies
    return journal


def id_of(journal: RedisJournal) -> str:
    """Return the id of the run that an attempt is of."""
    return journal._keys.task_id  # noqa: SLF001


def entry(client: "redis.Redis", store: Store, task_id: str, position: int) -> Any:
    """Return what the journal holds at a position of the body."""
    return json.loads(client.hget(store.keys(task_id).run, f"step:{position}"))


def written(journal: RedisJournal, fields: dict[str, str]) -> None:
    """Write these fields, and wait until Redis has them."""
    journal.send(fields)
    journal.flush()


def executions(client: "redis.Redis", command: str) -> int:
    """Return how often the server has executed a command."""
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def run_to_its_end(store: Store, task_id: str) -> None:
    """Do what an attempt does: open, record, end, deliver."""
    journal = opened(store, task_id)
    journal.send({"step:1": done_entry("charge", 1, 1, 1, {}, "1"), "progress": "1"})
    journal.flush()
    journal.finish("succeeded", {"outcome": '{"value":1}'})
    journal.deliver(60)
    journal.prove_lease()
    journal.close()


def assert_ended(client: "redis.Redis", store: Store, task_id: str) -> None:
    """Check that one attempt has done that."""
    fields = client.hgetall(store.keys(task_id).run)
    assert (fields["status"], fields["delivered"], fields["attempt"]) == ("succeeded", "1", "1")
    assert "step:1" in fields


def delivered_in_an_outage(server: RedisServer, store: Store, task_id: str) -> JournalConnection:
    """End a run whose delivery does not reach the server; return the connection that it is pending on, now idle."""
    journal = opened(store, task_id)
    journal.finish("succeeded", {"outcome": "{}"})
    connection = journal.connection
    server.kill()
    journal.deliver(60)
    journal.close()
    assert len(connection.pending) == 1
    return connection
