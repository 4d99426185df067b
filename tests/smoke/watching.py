"""What tests see of runs from outside: journals, messages in the broker, retries in the log."""

import json
import re
from typing import Any

import redis

from tests.smoke.nodes import BROKER_DB, DurableSetup, Worker
from tests.waiting import eventually

QUEUE = "celery"


def journal(client: redis.Redis, task_id: str) -> dict[str, str]:
    """Return the journal of a run, empty if there is none."""
    for key in client.scan_iter(match=f"*:run:{task_id}", count=1000):
        return client.hgetall(key)
    return {}


def steps(client: redis.Redis, task_id: str) -> list[tuple[str, str, int]]:
    """Return name, state and number of executions of each step in the journal, in program order."""
    fields = journal(client, task_id)
    positions = sorted(int(field[5:]) for field in fields if field.startswith("step:"))
    entries = [json.loads(fields[f"step:{position}"]) for position in positions]
    return [(entry["name"], entry["state"], entry["attempts"]) for entry in entries]


def countdowns(worker: Worker, task_id: str) -> list[float]:
    """Return the seconds of each retry of a task, as Celery logs them."""
    return [float(found) for found in re.findall(rf"\[{task_id}\] retry: Retry in ([\d.]+)s", worker.log())]


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
