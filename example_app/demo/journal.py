"""A look into the journals, which are plain text in Redis: `HGETALL "durable:{<shard>}:run:<task id>"`."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis


@dataclass(frozen=True)
class Glance:
    """What the journal of one task says at one moment."""

    attempts: int = 0
    finished_steps: int = 0


class Journals:
    """The journals of all tasks, by task id, and how many steps were replayed from each; *redis* decodes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._glances: dict[str, Glance] = {}
        self._replayed: Counter[str] = Counter()

    def look(self) -> None:
        """Read them all; for moments when no worker lives.

        What a journal holds when its worker has died is what the next attempt replays. So the replayed steps
        are counted here from outside, by comparing two looks; nobody has to be believed.
        """
        for key in self._redis.scan_iter(match="*:run:*"):
            task_id = key.partition(":run:")[2]
            before, now = self._glances.get(task_id, Glance()), _glance(self._redis.hgetall(key))
            self._replayed[task_id] += (now.attempts - before.attempts) * before.finished_steps
            self._glances[task_id] = now

    def attempts(self, task_id: str) -> int:
        """How often the task's body was begun, as of the last look."""
        return self._glances.get(task_id, Glance()).attempts

    def replayed(self, task_id: str) -> int:
        """How many finished steps were before its attempts, from the second on."""
        return self._replayed[task_id]


def _glance(fields: Mapping[Any, Any]) -> Glance:
    steps = [json.loads(entry) for field, entry in fields.items() if field.startswith("step:")]
    return Glance(int(fields.get("attempt", 0)), sum(step["state"] == "done" for step in steps))
