"""What tests see of runs from outside: journals, messages in the broker, retries in the log."""

import json
import re
from datetime import datetime, timezone
from typing import Any

import pytest
import redis
from celery.states import READY_STATES

from tests.smoke.nodes import BROKER_DB, DurableSetup, Worker
from tests.waiting import eventually

QUEUE = "celery"


def run_key(client: redis.Redis, task_id: str) -> str:
    """Return the key of a run's journal, "" if there is none."""
    return next(client.scan_iter(match=f"*:run:{task_id}", count=1000), "")


def due_set(client: redis.Redis, task_id: str) -> str:
    """Return the key of the set that says when the run is to go on."""
    return run_key(client, task_id).removesuffix(f"run:{task_id}") + "due"


def journal(client: redis.Redis, task_id: str) -> dict[str, str]:
    """Return the journal of a run, empty if there is none."""
    return client.hgetall(run_key(client, task_id))


def entries(client: redis.Redis, task_id: str) -> list[dict[str, Any]]:
    """Return the steps and waits in the journal, in program order."""
    fields = journal(client, task_id)
    positions = sorted(int(field[5:]) for field in fields if field.startswith("step:"))
    return [json.loads(fields[f"step:{position}"]) for position in positions]


def steps(client: redis.Redis, task_id: str) -> list[tuple[str, str, int]]:
    """Return name, state and number of executions of each step in the journal, in program order."""
    return [(entry["name"], entry["state"], entry["attempts"]) for entry in entries(client, task_id)]


def due(durable: DurableSetup, task_id: str) -> datetime:
    """Return when a suspended run is to go on."""
    return datetime.fromtimestamp(int(journal(durable.redis, task_id)["due"]) / 1000, timezone.utc)


def wait_until_suspended(durable: DurableSetup, *ids: str, deadline: float = 30) -> None:
    def suspended() -> bool:
        return all(journal(durable.redis, task_id).get("status") == "suspended" for task_id in ids)

    eventually(suspended, deadline, what=f"runs {ids} to be suspended")


def delivered(durable: DurableSetup, task_id: str) -> bool:
    """Tell whether the last that an attempt writes is in the journal."""
    return "delivered" in journal(durable.redis, task_id)


def wait_until_delivered(durable: DurableSetup, task_id: str, deadline: float = 15) -> None:
    eventually(lambda: delivered(durable, task_id), deadline, what=f"run {task_id} to be delivered")


def wait_for_renewals(durable: DurableSetup, runs: int = 1, times: int = 3) -> None:
    """Wait until the leases of so many runs, which are all that there are, have each been renewed so often."""
    seen: dict[str, set[float]] = {}

    def renewed() -> bool:
        for key in durable.redis.scan_iter(match="*:leases"):
            for run, lapses in durable.redis.zrange(key, 0, -1, withscores=True):
                seen.setdefault(run, set()).add(lapses)
        return sum(len(ends) > times for ends in seen.values()) == runs

    eventually(renewed, what=f"{times} renewals of {runs} leases")


def elapse(durable: DurableSetup, task_id: str) -> None:
    """Let all the time that a suspended run waits for be over: rewrite its journal as if it had begun long ago."""
    client = durable.redis
    key, ended = run_key(client, task_id), 1
    with client.pipeline() as together:
        for field, text in client.hgetall(key).items():
            if field.startswith("step:") and '"until"' in text:
                together.hset(key, field, json.dumps({**json.loads(text), "until": ended}, separators=(",", ":")))
        together.hset(key, "due", ended)
        together.zadd(due_set(client, task_id), {task_id: ended}, xx=True)
        together.execute()


def outcome(durable: DurableSetup, task_id: str, deadline: float = 20) -> Any:
    """Return the value or the error that is stored of a task, when there is one; for an id whose task has ended before.

    Celery may have read the first end before its message came. It keeps that message for the next result of the id,
    whose `get()` then gives the first end once more.
    """
    backend = durable.app.backend
    eventually(lambda: backend.get_task_meta(task_id)["status"] in READY_STATES, deadline=deadline, what="an outcome")
    return backend.get_task_meta(task_id)["result"]


def received(worker: Worker, task_id: str) -> int:
    """Return how many messages of a task the worker has taken."""
    return worker.log().count(f"[{task_id}] received")


def countdowns(worker: Worker, task_id: str) -> list[float]:
    """Return the seconds of each retry of a task, as Celery logs them."""
    return [float(found) for found in re.findall(rf"\[{task_id}\] retry: Retry in ([\d.]+)s", worker.log())]


def wait_for_countdowns(worker: Worker, task_id: str, expected: list[float]) -> None:
    """Wait until a task has been retried with these countdowns and no others, in whatever order they are logged.

    The attempts of a task run in several processes: one may write its line after the next attempt has ended.
    """
    wanted = pytest.approx(sorted(expected))
    eventually(lambda: sorted(countdowns(worker, task_id)) == wanted, what=f"the countdowns {expected} in the log")


def announced_delays(worker: Worker, task_id: str) -> list[float]:
    """Return the seconds until each next try, in their order: an attempt logs them before it sends the next one."""
    return [float(found) for found in re.findall(rf"task {task_id}: .*; next try in ([\d.]+) s", worker.log())]


def logged(worker: Worker, *parts: str, times: int = 1) -> bool:
    """Tell whether so many lines of the log contain all these parts."""
    return sum(all(part in line for part in parts) for line in worker.log().splitlines()) >= times


def wait_until_logged(worker: Worker, *parts: str, times: int = 1, deadline: float = 15) -> None:
    eventually(lambda: logged(worker, *parts, times=times), deadline, what=f"{times} lines with {parts} in the log")


def waiting_message(durable: DurableSetup) -> dict[str, Any]:
    """Return the only message of the queue, which no worker has taken yet, and leave it there."""
    with durable.broker_server.client(BROKER_DB) as client:
        (raw,) = client.lrange(QUEUE, 0, -1)
    return json.loads(raw)


def deliver_again(durable: DurableSetup, message: dict[str, Any]) -> None:
    """Put a message back into the queue with the marks that the broker gives to one that was not acknowledged."""
    copy = json.loads(json.dumps(message))
    copy["headers"]["redelivered"] = copy["properties"]["delivery_info"]["redelivered"] = True
    with durable.broker_server.client(BROKER_DB) as client:
        client.rpush(QUEUE, json.dumps(copy))


def wait_until_idle(durable: DurableSetup) -> None:
    """Wait until the broker holds no message, neither waiting nor unacknowledged."""
    with durable.broker_server.client(BROKER_DB) as client:
        eventually(lambda: not client.llen(QUEUE) and not client.hlen("unacked"), what="a broker without messages")
