"""Runs that nobody has executed, for the pages that show them. The scripts of the library write their journals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from celery_durable.app.store import Store
from celery_durable.journal.entries import done_entry, open_entry
from celery_durable.journal.layout import Kind, State, Status, Wait, step_field
from celery_durable.journal.port import NO_RESULT, Delivery

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
OWNER = "shop-1:3f9a2c41:4711"
WEEK = 7 * 24 * 3600.0


class Model(NamedTuple):
    """What a run is made of."""

    fields: dict[str, str]
    sets: list[str]
    """The sorted sets of its shard that it is in."""
    known: dict[str, float]
    """What is in the sorted set that names these."""


class Garden:
    """Plants runs of one app."""

    def __init__(self, store: Store, client: redis.Redis, now: int) -> None:
        self._store = store
        self._client = client
        self.now = now
        """Milliseconds since the epoch, of all that is planted."""

    def plant(
        self,
        task_id: str,
        *entries: str,
        status: str = Status.SUCCEEDED,
        waits: str = "",
        task: str = "shop.order",
        call: tuple[Sequence[Any], Mapping[str, Any]] = ((), {}),
        error: tuple[str, str] | None = None,
        earlier: tuple[int, int] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Let there be a run. *fields* replace what the scripts have written.

        *earlier*: when an attempt before the last one began, and when it was left.
        """
        args, kwargs = call
        options = {"task_id": task_id, "queue": "celery"}
        delivery = Delivery(task_id, task, "f1", json.dumps({"args": args, "kwargs": kwargs, "options": options}))
        journal = self._store.journal(task_id)
        journal.open(delivery)
        if earlier:
            journal.suspend(0, {})
            journal.close()
            journal = self._store.journal(task_id)
            journal.open(delivery)
        if entries:
            journal.send({step_field(str(number)): entry for number, entry in enumerate(entries, 1)})
        if status == Status.SUCCEEDED:
            journal.conclude({"outcome": '{"value": 1}'}, WEEK, NO_RESULT)
        elif status == Status.SUSPENDED:
            journal.suspend(HOUR, {}, waits=waits or Wait.SLEEP)
        elif status in Status.ENDED:
            kind, message = error or ("TerminalError", "declined")
            journal.finish(status, {"outcome": json.dumps({"error": {"type": kind, "message": message}})})
            journal.deliver(WEEK)
            journal.flush()
        else:
            journal.flush()
        journal.close()
        if earlier:
            said = self._client.hget(self._store.keys(task_id).run, "attempt.1").split(" ")
            self.change(task_id, **{"attempt.1": " ".join([said[0], *map(str, earlier), OWNER, *said[4:]])})
        if fields:
            self.change(task_id, **fields)

    def plant_written(self, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Let there be a failed run that has this text wherever users may write one."""
        error = (text, text)
        self.plant(
            text,
            done(text, self.now, 1, text),
            failed(text, self.now, self.now, 1, error),
            status=Status.FAILED,
            task=text,
            call=([text], {"key": text}),
            error=error,
            fields=fields,
        )

    def change(self, task_id: str, **fields: Any) -> None:
        """Let these fields of a journal be others."""
        self._client.hset(self._store.keys(task_id).run, mapping=fields)

    def crowd(self, number: int) -> None:
        """Let there be many runs: copies of a few, with arguments of their own. Each is newer than the one before."""
        models = []
        for each in range(6):
            status = Status.FAILED if each == 0 else Status.SUCCEEDED
            self.plant(f"model-{each}", status=status, task=f"shop.crowd{each % 3}")
            models.append(self._model(f"model-{each}"))
        for first in range(0, number, 500):
            with self._client.pipeline(transaction=False) as commands:
                for each in range(first, min(first + 500, number)):
                    self._copy(commands, models[each % 6], f"crowd-{each:05}", self.now - number + each)
                commands.execute()
        self._client.delete(*(self._store.keys(f"model-{each}").run for each in range(6)))

    def _model(self, task_id: str) -> Model:
        keys = self._store.keys(task_id)
        shard = keys.leases.removesuffix("leases")
        names = [name for name in self._client.scan_iter(f"{shard}index:*") if self._client.zscore(name, task_id)]
        known = dict(self._client.zrange(f"{shard}index", 0, -1, withscores=True))
        return Model(self._client.hgetall(keys.run), [name.removeprefix(shard) for name in names], known)

    def _copy(self, commands: Any, model: Model, task_id: str, at: int) -> None:
        fields, names, known = model
        keys = self._store.keys(task_id)
        shard = keys.leases.removesuffix("leases")
        call = fields["call"].replace('"args": []', f'"args": ["{task_id}"]')
        commands.hset(keys.run, mapping={**fields, "call": call, "created": at, "opened": at, "ended": at})
        commands.pexpire(keys.run, round(WEEK * 1000))
        commands.zadd(f"{shard}index", known)
        for name in names:
            commands.zadd(shard + name, {task_id: at})


def done(name: str, at: int, ms: int, value: Any = None, executions: int = 1) -> str:
    return done_entry(name, executions, at, ms, {}, json.dumps(value))


def failed(name: str, first: int, at: int, ms: int, error: tuple[str, str], executions: int = 1) -> str:
    kind, message = error
    facts = {"first": first, "error": {"type": kind, "message": message}, "at": at, "ms": ms}
    return open_entry(name, State.FAILED, executions, **facts)


def retrying(name: str, first: int, error: tuple[str, str], executions: int) -> str:
    kind, message = error
    return open_entry(name, State.RETRYING, executions, first=first, error={"type": kind, "message": message})


def started(name: str, first: int) -> str:
    return open_entry(name, State.STARTED, 1, first=first)


def sleep(name: str, until: int, state: str = State.SLEEPING) -> str:
    return open_entry(name, state, 0, Kind.SLEEP, until=until)


def shop(garden: Garden) -> Iterable[str]:
    """A small shop, for pictures; yields the ids of its runs."""
    now = garden.now
    for number, (task_id, began) in enumerate(_ids(now), 1):
        base = {"created": began, "opened": began, "owner": OWNER, "build": "2f7c1e0a"}
        _SHOP[number % len(_SHOP)](garden, task_id, began, now, number, base)
        yield task_id


def _ids(now: int) -> Iterable[tuple[str, int]]:
    for number in range(14):
        yield f"7d1f{number:04x}-5c0e-4f5b-9a51-3b1d0c9e{number * 4099:04x}"[:36], now - (14 - number) * 7 * MINUTE


def _succeeded(garden: Garden, task_id: str, began: int, _now: int, number: int, base: dict[str, Any]) -> None:
    garden.plant(
        task_id,
        done("reserve", began + 40, 31, {"shelf": f"A{number}"}),
        done("charge", began + 1_940, 1_890, {"id": f"ch_{number}", "amount": 49.9}),
        done("pack", began + 2_600, 640, {"parcel": number}),
        done("ship", began + 3_400, 790, "DHL 00340434161094"),
        call=([f"order-{1000 + number}"], {"express": number % 2 == 0}),
        fields={**base, "ended": began + 3_410},
    )


def _sleeping(garden: Garden, task_id: str, began: int, now: int, number: int, base: dict[str, Any]) -> None:
    until = now + 23 * HOUR
    garden.plant(
        task_id,
        done("reserve", began + 40, 31, {"shelf": f"A{number}"}),
        done("charge", began + 940, 890, {"id": f"ch_{number}", "amount": 49.9}),
        sleep("until the goods arrive", until),
        status=Status.SUSPENDED,
        waits=Wait.SLEEP,
        call=([f"order-{1000 + number}"], {"express": False}),
        fields={**base, "left": began + 960, "due": until},
    )


def _failed(garden: Garden, task_id: str, began: int, _now: int, number: int, base: dict[str, Any]) -> None:
    second = began + 61_000
    declined = ("Declined", "the bank has refused card 4*** 1881")
    garden.plant(
        task_id,
        done("reserve", began + 40, 31, {"shelf": f"A{number}"}),
        failed("charge", began + 60, second + 1_300, 1_250, declined, executions=3),
        done("release", second + 1_700, 380, True),
        status=Status.FAILED,
        call=([f"order-{1000 + number}"], {"express": False}),
        error=declined,
        earlier=(began, began + 950),
        fields={
            **base,
            "opened": second,
            "attempt_build": f"2:{base['build']}",
            "ended": second + 1_720,
            "actions": json.dumps({"what": "retry", "by": "ann", "at": second - 200}),
        },
    )


def _refund(garden: Garden, task_id: str, began: int, now: int, number: int, base: dict[str, Any]) -> None:
    until = now + 95 * SECOND
    garden.plant(
        task_id,
        done("find payment", began + 40, 31, f"ch_{number}"),
        retrying("refund", began + 60, ("ConnectionError", "the gateway is away"), 4),
        status=Status.SUSPENDED,
        waits=Wait.RETRY,
        task="shop.refund",
        call=([f"order-{1000 + number}"], {}),
        fields={**base, "left": began + 20_000, "due": until},
    )


_SHOP = (_succeeded, _sleeping, _succeeded, _failed, _succeeded, _refund, _succeeded)
