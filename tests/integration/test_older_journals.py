"""Golden journals: what each version has left, this one brings to the end that it had there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from celery_durable.app.store import store_of
from tests.journals import tasks
from tests.journals.drive import LONG_AGO, Golden
from tests.journals.record import CASES

FOLDER = Path(tasks.__file__).parent
GOLDEN = sorted(FOLDER.glob("*/*.json"))


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = tasks.app_with(redis_url)
    yield app
    app.close()


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_journal_replays_to_its_end(file: Path, app: Celery, redis_client: redis.Redis) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    run = Golden(app, redis_client, document["task"], document["task_id"])
    load(run, document)
    tasks.executed.clear()

    run.finish()

    assert sorted(tasks.executed) == document["executes"], "no step that is recorded runs again"
    assert run.end == document["end"]


def load(run: Golden, document: dict) -> None:
    """Put an export into Redis."""
    run.client.hset(run.keys.run, mapping=document["journal"])
    if document["expires"]:
        run.client.expire(run.keys.run, 3600)
    for name in document["sets"]:
        run.client.zadd(getattr(run.keys, name), {run.task_id: LONG_AGO})
    assert store_of(run.app).runs.is_known(run.task_id)


@pytest.mark.parametrize("version", sorted({file.parent.name for file in GOLDEN}))
def test_each_version_has_left_every_kind_of_journal(version: str) -> None:
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in GOLDEN if file.parent.name == version]
    assert {file.stem for file in GOLDEN if file.parent.name == version} >= OF_0_1_0
    assert {document["journal"]["status"] for document in kept} == {
        "running", "suspended", "succeeded", "failed", "revoked", "ignored",
    }  # fmt: skip
    entries = [json.loads(text) for each in kept for name, text in each["journal"].items() if name.startswith("step:")]
    assert {entry["state"] for entry in entries} == {"started", "retrying", "done", "failed", "cancelled", "sleeping"}
    marks = {mark for entry in entries for mark in entry}
    assert marks >= {"encoding", "member", "serializer", "compression", "until", "first", "error"}


OF_0_1_0 = {file.stem for file in GOLDEN if file.parent.name == "0.1.0"}


def test_what_is_recorded_by_hand_is_all_there_is_to_record() -> None:
    assert set(CASES) >= OF_0_1_0
