"""What tests do to runs from outside: take their messages away, hurry their waits, and see that nothing is left."""

import json

import redis

from tests.smoke.nodes import BROKER_DB, DurableSetup
from tests.smoke.watching import QUEUE
from tests.waiting import eventually

HELD_BY_THE_BROKER = (QUEUE, "unacked", "unacked_index")


def lose_messages(durable: DurableSetup) -> None:
    """Let the broker forget every message, waiting or unacknowledged."""
    with durable.broker_server.client(BROKER_DB) as client:
        client.delete(*HELD_BY_THE_BROKER)


def messages(durable: DurableSetup) -> tuple[int, int]:
    """Return how many messages wait, and how many are unacknowledged."""
    with durable.broker_server.client(BROKER_DB) as client:
        return client.llen(QUEUE), client.hlen("unacked")


def wait_for_messages(durable: DurableSetup, waiting: int, unacknowledged: int, what: str = "") -> None:
    """Wait until the broker holds so many: a worker acknowledges a message a moment after it has stored the result."""
    held = (waiting, unacknowledged)
    eventually(lambda: messages(durable) == held, what=f"{held} messages in the broker, {what}")


def waiting(client: redis.Redis, *kinds: str) -> list[str]:
    """Return the ids in the sorted sets of all shards: runs that somebody carries on or is to carry on."""
    keys = [key for kind in kinds or ("leases", "due") for key in client.scan_iter(match=f"*:{kind}")]
    return sorted(task_id for key in keys for task_id in client.zrange(key, 0, -1))


def journals(client: redis.Redis) -> dict[str, dict[str, str]]:
    """Return all runs, by their ids."""
    keys = list(client.scan_iter(match="*:run:*", count=1000))
    with client.pipeline(transaction=False) as questions:
        for key in keys:
            questions.hgetall(key)
        return dict(zip((key.rpartition(":")[2] for key in keys), questions.execute(), strict=True))


def end_waits(client: redis.Redis) -> None:
    """Let the waits of all suspended runs be over now, also those that their code has asked for."""
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000
    for key in client.scan_iter(match="*:due"):
        for task_id in (due := client.zrange(key, 0, -1)):
            run = f"{key.removesuffix('due')}run:{task_id}"
            client.hset(run, mapping={"due": now} | _awake(client.hgetall(run), now))
        client.zadd(key, dict.fromkeys(due, now), xx=True)


def _awake(fields: dict[str, str], now: int) -> dict[str, str]:
    entries = {name: json.loads(text) for name, text in fields.items() if name.startswith("step:")}
    return {name: json.dumps(entry | {"until": now}) for name, entry in entries.items() if "until" in entry}
