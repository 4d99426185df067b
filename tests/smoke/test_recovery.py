"""Runs whose worker, child or message is gone go on from their journal; the broker's copy would come in an hour."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import pytest
from billiard.exceptions import WorkerLostError
from celery import chain, chord, group
from celery.result import AsyncResult

from celery_durable import RecoveryLimitExceeded, TerminalError
from celery_durable.redis.keys import SHARDS
from tests.processes import PROJECT
from tests.servers import RedisServer
from tests.smoke import effects
from tests.smoke.apps import recovery
from tests.smoke.nodes import BACKEND_DB, BROKER_DB, DurableSetup, Worker
from tests.smoke.runs import end_waits, journals, lose_messages, messages, wait_for_messages, waiting
from tests.smoke.watching import (
    deliver_again,
    delivered,
    journal,
    outcome,
    wait_until_delivered,
    wait_until_idle,
    wait_until_logged,
    wait_until_suspended,
    waiting_message,
)
from tests.waiting import eventually

LEASE = 2
TAKEOVER = LEASE + 5
"""Seconds after which another worker has taken over."""
LONG = 30
STEPS = ("first", "second", "third")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.recovery"


def task(name: str) -> Any:
    return getattr(recovery, name)


def start_two(durable: DurableSetup, **options: Any) -> list[Worker]:
    workers = [durable.start_worker(concurrency=1, wait=False, **options) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    return workers


def victim_and_heir(workers: list[Worker], pid: int) -> tuple[Worker, Worker]:
    """Return the worker with this process, and the other one."""
    return tuple(sorted(workers, key=lambda worker: pid not in worker.children()))


def states(task_id: str) -> set[str]:
    """Return all states that anyone has stored of a task."""
    return {hit.key.split()[1] for hit in effects.hits("stored") if hit.key.startswith(task_id)}


# -- the worker is killed


def test_another_worker_goes_on_with_the_run_of_one_that_was_killed(durable: DurableSetup, acks: str) -> None:
    workers = start_two(durable)
    result = task(acks).delay(held_at="second")
    killed = effects.wait_until_blocked("second").pid
    victim, heir = victim_and_heir(workers, killed)
    victim.kill()
    effects.wait_until_blocked("second", times=2, deadline=TAKEOVER)
    effects.release("second")

    assert result.get(timeout=LONG) == [killed, *heir.children() * 2]
    assert effects.counts(*STEPS, key=result.id) == [1, 2, 1]
    run = journal(durable.redis, result.id)
    assert (run["status"], run["attempt"], run["recoveries"]) == ("succeeded", "2", "0")
    wait_for_messages(durable, 0, 1 if acks == "late" else 0, "the copy that was lost with the worker")
    assert states(result.id) == {"SUCCESS"}


def test_a_late_copy_of_a_message_finds_the_outcome(durable: DurableSetup) -> None:
    victim = durable.start_worker(concurrency=1)
    last = chain(recovery.late.s(held_at="second"), recovery.follow.s()).apply_async()
    effects.wait_until_blocked("second")
    victim.kill()
    effects.release("second")
    heir = durable.start_worker(concurrency=1)
    value = last.get(timeout=LONG)
    wait_for_messages(durable, 0, 1)
    heir.stop()
    # Its broker delivers again what was not acknowledged for a second.
    last_one = durable.start_worker(concurrency=1, visibility_timeout=1)
    wait_until_logged(last_one, f"task {last.parent.id} already finished")
    wait_until_idle(durable)
    recovery.quick.delay().get(timeout=10)

    assert value == last.parent.get(timeout=5)
    assert effects.counts(*STEPS, "follow") == [1, 2, 1, 1]
    assert effects.count("sent", last.id) == 1


def test_a_run_needs_no_message(durable: DurableSetup, acks: str) -> None:
    """The broker loses it, and then the worker dies."""
    victim = durable.start_worker(concurrency=1)
    result = task(acks).delay(held_at="second")
    effects.wait_until_blocked("second")
    lose_messages(durable)
    victim.kill()
    durable.start_worker(concurrency=1)
    effects.wait_until_blocked("second", times=2, deadline=TAKEOVER)
    effects.release("second")

    assert len(result.get(timeout=LONG)) == 3
    assert effects.counts(*STEPS, key=result.id) == [1, 2, 1]
    wait_until_idle(durable)


def test_a_run_whose_message_is_lost_while_it_runs_does_not_notice(durable: DurableSetup) -> None:
    durable.start_worker()
    result = recovery.late.delay(held_at="second")
    pid = effects.wait_until_blocked("second").pid
    lose_messages(durable)
    effects.release("second")

    assert result.get(timeout=LONG) == [pid] * 3
    assert effects.count("sent", result.id) == 1
    assert journal(durable.redis, result.id)["attempt"] == "1"


@pytest.mark.parametrize("delay", [2, 3600], ids=["the broker's", "the journal's"])
def test_a_wait_needs_no_message_either(durable: DurableSetup, delay: float) -> None:
    victim = durable.start_worker(concurrency=1)
    result = recovery.backs_off.delay(delay)
    wait_until_suspended(durable, result.id)
    victim.kill()
    lose_messages(durable)
    end_waits(durable.redis)
    durable.start_worker(concurrency=1)

    assert result.get(timeout=LONG) == 2
    assert effects.counts("before", "flaky", key=result.id) == [1, 2]
    run = journal(durable.redis, result.id)
    assert (run["attempt"], run["recoveries"]) == ("2", "0"), "to wait is not to die"


# -- the worker is killed between the outcome and its delivery


def killed_at_delivery(durable: DurableSetup, task_id: str) -> Worker:
    """Let the worker die when the journal knows the outcome, and the result backend does not; return its heir."""
    victim = durable.start_worker(concurrency=1)
    effects.wait_until_blocked("delivery")
    assert journal(durable.redis, task_id)["status"] in ("succeeded", "failed")
    assert not delivered(durable, task_id)
    victim.kill()
    assert AsyncResult(task_id, app=durable.app).state == "PENDING"
    effects.release("delivery")
    return durable.start_worker(concurrency=1)


def wait_for_all(durable: DurableSetup, task_id: str) -> None:
    """Wait until nothing is left to do, of which something might be done twice."""
    wait_until_delivered(durable, task_id, LONG)
    eventually(lambda: not waiting(durable.redis))
    eventually(lambda: messages(durable)[0] == 0)
    recovery.quick.delay().get(timeout=10)
    assert journal(durable.redis, task_id)["attempt"] == "1"


def test_a_result_that_was_not_stored_is_stored_by_another_worker(durable: DurableSetup) -> None:
    result = recovery.early.delay(held_at="delivery")
    killed_at_delivery(durable, result.id)

    value = result.get(timeout=LONG)
    wait_for_all(durable, result.id)

    assert value == [effects.hits("first")[0].pid] * 3
    assert effects.counts(*STEPS) == [1, 1, 1]
    assert effects.count("stored", f"{result.id} SUCCESS") == 1


def test_the_next_task_of_a_chain_that_was_not_sent_is_sent_by_another_worker(durable: DurableSetup, acks: str) -> None:
    last = chain(task(acks).s(held_at="delivery"), recovery.follow.s()).apply_async()
    killed_at_delivery(durable, last.parent.id)

    value = last.get(timeout=LONG)
    wait_for_all(durable, last.parent.id)

    assert value == last.parent.get(timeout=5)
    assert effects.counts(*STEPS, "follow") == [1, 1, 1, 1]
    assert effects.count("sent", last.id) == 1


def test_a_chord_goes_on_though_a_member_died_before_it_was_counted(durable: DurableSetup) -> None:
    body = chord([recovery.early.s(), recovery.early.s(held_at="delivery")], recovery.total.s()).apply_async()
    held = body.parent.results[1].id
    killed_at_delivery(durable, held)

    assert body.get(timeout=LONG) == 2
    wait_for_all(durable, held)
    assert effects.counts(*STEPS) == [2, 2, 2]
    assert effects.counts("total", "sent", key=body.id) == [1, 1]


def test_an_errback_that_was_not_called_is_called_by_another_worker(durable: DurableSetup) -> None:
    result = recovery.refused.apply_async(kwargs={"held_at": "delivery"}, link_error=recovery.note_error.s())
    killed_at_delivery(durable, result.id)

    with pytest.raises(TerminalError, match="card declined"):
        result.get(timeout=LONG)
    wait_for_all(durable, result.id)

    assert [hit.key for hit in effects.hits("errbacks")] == [f"{result.id} TerminalError"]
    assert effects.count("charge") == 1
    assert states(result.id) == {"FAILURE"}


def test_a_delivery_may_take_longer_than_the_lease(durable: DurableSetup) -> None:
    """A live worker delivers: no other one does, too."""
    durable.start_worker(concurrency=2, conf={"durable_lease": 1})
    last = chain(recovery.early.s(held_at="delivery"), recovery.follow.s()).apply_async()
    effects.wait_until_blocked("delivery")
    outlives_its_lease(durable, last.parent.id)
    effects.release("delivery")
    last.get(timeout=LONG)
    wait_for_all(durable, last.parent.id)

    assert effects.counts("delivery.gate", "follow") == [2, 1], "the next task, and the result"
    assert effects.count("sent", last.id) == 1
    assert effects.count("stored", f"{last.parent.id} SUCCESS") == 1


# -- a child is killed


def test_a_lost_child_is_no_failure_of_a_run_that_has_begun(durable: DurableSetup, acks: str) -> None:
    worker = durable.start_worker(concurrency=1, conf={"durable_lease": 60})
    last = chain(task(acks).s(held_at="second"), recovery.follow.s()).apply_async()
    killed = effects.wait_until_blocked("second").pid
    worker.kill_child(killed)
    effects.release("second")

    pids = last.get(timeout=LONG)

    assert pids[0] == killed
    assert pids[1] == pids[2] != killed
    assert effects.counts(*STEPS, key=last.parent.id) == [1, 2, 1]
    assert states(last.parent.id) == {"SUCCESS"}
    assert effects.counts("failures", "follow") == [0, 1]
    wait_until_idle(durable)


def test_a_child_lost_before_the_run_began_is_what_it_is_in_celery(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=1)
    early, late = recovery.early_unbegun.delay(), recovery.late_unbegun.delay()

    with pytest.raises(WorkerLostError):
        early.get(timeout=LONG)
    assert isinstance(late.get(timeout=LONG), int)
    wait_until_idle(durable)

    assert effects.counts("bodies", "step", key=early.id) == [1, 0]
    assert effects.counts("bodies", "step", key=late.id) == [2, 1]
    assert [hit.key for hit in effects.hits("failures")] == [f"{early.id} WorkerLostError"]
    assert effects.counts("sent", key=late.id) == [1], "the broker delivers the same message again"
    assert not journal(durable.redis, early.id)


@pytest.mark.parametrize("name", ["early_poison", "late_poison"])
def test_a_poison_task_is_given_up_and_can_be_retried(durable: DurableSetup, name: str) -> None:
    # Celery takes up to five seconds to see that a child is gone.
    worker = durable.start_worker(concurrency=3, conf={"durable_lease": 1})
    result = task(name).delay()

    with pytest.raises(RecoveryLimitExceeded, match=f"task {result.id}: 3 attempts in a row"):
        result.get(timeout=LONG)

    wait_until_delivered(durable, result.id)
    assert effects.count("poison", result.id) == 3
    assert states(result.id) == {"FAILURE"}
    assert [hit.key for hit in effects.hits("failures")] == [f"{result.id} RecoveryLimitExceeded"]
    assert journal(durable.redis, result.id)["status"] == "failed"
    assert worker.running
    effects.hit("cured")
    durable.app.tasks["celery_durable.retry"].delay(result.id).get(timeout=10)

    # A result that has been looked at keeps the FAILURE that it saw.
    eventually(lambda: AsyncResult(result.id, app=durable.app).state == "SUCCESS")
    assert outcome(durable, result.id) == "cured"
    assert effects.count("poison", result.id) == 4
    wait_until_idle(durable)


# -- many at once


def test_of_several_workers_one_sends_each_run(durable: DurableSetup) -> None:
    # Nothing is to be sent twice because a busy machine has not come to it.
    workers = [durable.start_worker(wait=False, env={"DURABLE_TEST_LEASE": "60"}) for _ in range(3)]
    results = [recovery.sleeps.delay() for _ in range(200)]
    ids = [result.id for result in results]
    for worker in workers:
        worker.wait_ready()
    wait_until_suspended(durable, *ids)
    eventually(lambda: messages(durable) == (0, 0))
    end_waits(durable.redis)

    assert [result.get(timeout=LONG) for result in results] == ["awake"] * 200
    wait_until_idle(durable)
    sent = Counter(hit.key for hit in effects.hits("sent"))
    assert sent == dict.fromkeys(ids, 2), "by the caller, and by one worker"
    assert Counter(hit.key for hit in effects.hits("after")) == dict.fromkeys(ids, 1)
    assert Counter(hit.key for hit in effects.hits("before")) == dict.fromkeys(ids, 1)
    assert {run["attempt"] for run in journals(durable.redis).values()} == {"2"}
    assert waiting(durable.redis) == []


def test_runs_of_tasks_that_an_app_does_not_know_are_left_alone_and_in_nobodys_way(durable: DurableSetup) -> None:
    """More of them than a worker goes through at a time, and all before the one that it knows."""
    lease = {"DURABLE_TEST_LEASE": "60"}
    worker = durable.start_worker(env=lease)
    ids = (one for one in iter(lambda: str(uuid4()), "") if crc32(one.encode()) % SHARDS == 0)
    unknown = [recovery.known_to_some.apply_async(task_id=next(ids)) for _ in range(220)]
    known = recovery.sleeps.apply_async(task_id=next(ids))
    wait_until_suspended(durable, known.id, *(result.id for result in unknown))
    worker.stop()
    end_waits(durable.redis)
    [due] = durable.redis.scan_iter(match="*:due")
    durable.redis.zadd(due, dict.fromkeys((result.id for result in unknown), 0))
    before = journals(durable.redis)
    del before[known.id]
    other = durable.start_worker(env={**lease, "DURABLE_TEST_FEWER_TASKS": "1"})

    assert known.get(timeout=LONG) == "awake"
    after = journals(durable.redis)
    assert after.pop(known.id)["status"] == "succeeded"
    assert after == before
    assert waiting(durable.redis) == sorted(before)
    assert effects.count("sent") == len(unknown) + 2
    other.stop()
    worker.restart()
    assert [result.get(timeout=LONG) for result in unknown] == ["awake"] * 220
    assert effects.count("sent") == 2 * len(unknown) + 2


# -- what a recovered message keeps


def facts(task_id: str) -> list[dict[str, Any]]:
    return [json.loads(hit.key) for hit in effects.hits(f"facts of {task_id}")]


def test_a_recovered_message_says_what_the_lost_one_said(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=2, queues=("celery", "orders"), conf={"durable_lease": 1})
    tells = recovery.tells_facts
    alone = tells.si(1, {"a": [2]}, key="value")
    alone.link(recovery.follow.s())
    alone.link_error(recovery.note_error.s())
    alone.stamp(customer="7")
    alone = alone.apply_async(
        queue="orders", priority=3, headers={"tenant": "acme"}, time_limit=50, soft_time_limit=40, shadow="shadow",
        reply_to="somewhere", ignore_result=False,
    )  # fmt: skip
    chained = chain(tells.s(1), tells.s(2), recovery.follow.s()).apply_async()
    grouped = chord(group(tells.s(number) for number in range(2)), recovery.total.s()).apply_async()

    assert len(chained.get(timeout=LONG)) == 2
    assert grouped.get(timeout=LONG) == 2
    assert len(alone.get(timeout=LONG)) == 2
    wait_until_idle(durable)

    ids = [alone.id, chained.parent.id, chained.parent.parent.id, *(member.id for member in grouped.parent.results)]
    for task_id in ids:
        first, second = facts(task_id)
        assert first == second
        assert effects.counts("first", "second", key=task_id) == [1, 1]
        assert states(task_id) == {"SUCCESS"}
    assert effects.count("follow") == 2
    assert effects.count("total", grouped.id) == 1
    told = facts(alone.id)[1]
    assert told["route"][1:] == ["orders", 3]
    assert told["headers"]["tenant"] == "acme"
    assert told["stamps"] == {"customer": ["7"]} or told["stamps"] == {"customer": "7"}
    assert (told["timelimit"], told["shadow"], told["reply_to"]) == ([50, 40], "shadow", "somewhere")
    assert (told["args"], told["kwargs"]) == ([1, {"a": [2]}], {"key": "value"})
    assert told["callbacks"]
    assert told["errbacks"]
    assert facts(ids[1])[1]["chain"]
    assert facts(ids[3])[1]["chord"]
    assert facts(ids[3])[1]["group"] == grouped.parent.id


def test_a_recovery_is_no_retry(durable: DurableSetup) -> None:
    """The task retries itself three times, as it may, though it died in between."""
    durable.start_worker(concurrency=1, conf={"durable_lease": 1})
    result = recovery.retries_itself.delay()

    with pytest.raises(ConnectionError, match="still away"):
        result.get(timeout=LONG)

    # The first retry is that of the step; the attempt after the second one dies.
    assert [hit.key for hit in effects.hits("retries")] == ["0", "1", "2", "2", "3", "4"]
    assert effects.count("flaky", result.id) == 2
    assert journal(durable.redis, result.id)["attempt"] == "6"


# -- by hand


def recover(durable: DurableSetup, **settings: str) -> str:
    """Run the command; return what it prints."""
    urls = {"CELERY_BROKER_URL": BROKER_DB, "CELERY_RESULT_BACKEND": BACKEND_DB}
    env = {name: durable.broker_server.url(db) for name, db in urls.items()}
    command = [sys.executable, "-m", "celery", "-A", "tests.smoke.apps.recovery", "durable", "recover"]
    ran = subprocess.run(
        command, env={**os.environ, **env, **settings}, cwd=PROJECT, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_runs_are_sent_again_by_a_command(durable: DurableSetup) -> None:
    """While no worker is there to do so."""
    lease = {"DURABLE_TEST_LEASE": "60"}
    worker = durable.start_worker(concurrency=3, env=lease)
    results = [recovery.sleeps.delay() for _ in range(3)]
    wait_until_suspended(durable, *(result.id for result in results))
    live = recovery.early.delay(held_at="second")
    effects.wait_until_blocked("second")
    worker.kill()
    lose_messages(durable)
    end_waits(durable.redis)

    assert recover(durable, **lease) == "3 runs sent again", "the lease of the fourth one lasts"
    assert recover(durable, **lease) == "0 runs sent again"
    assert messages(durable) == (3, 0)
    (leases,) = durable.redis.scan_iter(match="*:leases")
    durable.redis.zadd(leases, {live.id: 0}, xx=True)
    assert recover(durable, **lease) == "1 run sent again"
    assert messages(durable) == (4, 0)
    effects.release("second")
    durable.start_worker(concurrency=1, env=lease)

    assert [result.get(timeout=LONG) for result in results] == ["awake"] * 3
    assert len(live.get(timeout=LONG)) == 3
    assert effects.counts("before", "after") == [3, 3]
    assert effects.counts(*STEPS) == [1, 2, 1]
    assert effects.counts("sent") == [8]


# -- the broker is away


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A broker that is not where the journals are, and that forgets what it held."""
    with RedisServer() as server:
        yield server


@pytest.mark.local_nodes(reason="starts a server on this machine")
def test_runs_are_sent_when_the_broker_is_back(durable: DurableSetup, broker: RedisServer) -> None:
    worker = durable.start_worker(concurrency=1, env={"CELERY_BROKER_URL": broker.url()})
    with durable.app.connection_for_write(broker.url()) as connection:
        results = [recovery.sleeps.apply_async(connection=connection) for _ in range(3)]
    wait_until_suspended(durable, *(result.id for result in results))
    with broker.client() as client:
        # A worker with unacknowledged messages may end when its Redis broker goes away: that is kombu's affair.
        eventually(lambda: not client.exists("unacked", "celery"), what="a broker without messages")
    broker.stop()
    end_waits(durable.redis)
    wait_until_logged(worker, "runs cannot be sent now, the broker is away")
    broker.start()

    assert [result.get(timeout=LONG) for result in results] == ["awake"] * 3
    assert effects.counts("before", "after") == [3, 3]


# -- duplicates, and attempts that stood still


def test_a_second_message_of_a_live_run_is_forgotten(durable: DurableSetup, acks: str) -> None:
    result = task(acks).delay(held_at="second")
    message = waiting_message(durable)
    worker = durable.start_worker(concurrency=2)
    pid = effects.wait_until_blocked("second").pid
    deliver_again(durable, message)
    wait_until_logged(worker, f"[{result.id}] ignored")
    # A copy is the same to the broker: with it the first one is acknowledged, too.
    wait_until_idle(durable)
    assert result.state == "PENDING"
    effects.release("second")

    assert result.get(timeout=LONG) == [pid] * 3
    wait_until_idle(durable)
    deliver_again(durable, message)
    wait_until_logged(worker, f"[{result.id}] ignored", times=2)
    wait_until_idle(durable)
    assert effects.counts(*STEPS) == [1, 1, 1]
    assert effects.count("sent", result.id) == 1
    assert journal(durable.redis, result.id)["attempt"] == "1"


@pytest.mark.local_nodes(reason="stops processes by a signal")
def test_attempts_that_stood_still_beyond_their_lease_say_nothing_more(durable: DurableSetup) -> None:
    """Whatever their next word is: an outcome, a failure, a retry, a sleep, a step."""
    words = recovery.STALE_WORDS
    worker = durable.start_worker(concurrency=len(words) + 1, conf={"durable_lease": 1})
    lasts = {word: chain(recovery.stands_still.s(word), recovery.follow.s()).apply_async() for word in words}
    effects.wait_until_blocked("stale", times=len(words))
    stale = [hit.pid for hit in effects.hits("stale.gate")]
    for pid in stale:
        os.kill(pid, signal.SIGSTOP)
    effects.release("stale")
    assert {word: last.get(timeout=LONG) for word, last in lasts.items()} == dict.fromkeys(words, "the other")
    runs = [last.parent.id for last in lasts.values()]
    for task_id in runs:
        wait_until_delivered(durable, task_id)
    before = [journal(durable.redis, task_id) for task_id in runs]
    said = effects.counts("stored", "sent", "follow", "failures")
    for pid in stale:
        os.kill(pid, signal.SIGCONT)
    for task_id in runs:
        wait_until_logged(worker, task_id, "another attempt has taken over, or the run was revoked; this attempt ends")
        wait_until_logged(worker, f"[{task_id}] ignored")
    wait_until_idle(durable)

    assert effects.counts("stored", "sent", "follow", "failures") == said
    assert [journal(durable.redis, task_id) for task_id in runs] == before
    assert {run["attempt"] for run in before} == {"2"}
    assert effects.counts("first", "stale step", "follow") == [len(words), 0, len(words)]
    assert set(worker.children()) > set(stale), "they live on, and take tasks again"
    assert waiting(durable.redis) == []


# -- clocks


@pytest.fixture(params=[1800, -1800], ids=["ahead", "behind"])
def wrong_clock(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a Python whose clock is half an hour off."""
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "seconds, nanoseconds = time.time, time.time_ns\n"
        f"time.time = lambda: seconds() + {request.param}\n"
        f"time.time_ns = lambda: nanoseconds() + {request.param} * 10**9\n"
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.mark.local_nodes(reason="gives Python a module of this machine")
def test_clocks_that_differ_do_not_matter(durable: DurableSetup, wrong_clock: dict[str, str]) -> None:
    odd = durable.start_worker(concurrency=1, env=wrong_clock, conf={"durable_lease": 1})
    result = recovery.early.delay(held_at="second")
    hit = effects.wait_until_blocked("second")
    assert abs(hit.at - time.time()) > 1000
    even = durable.start_worker(concurrency=1, conf={"durable_lease": 1})
    outlives_its_lease(durable, result.id)
    odd.kill()
    effects.wait_until_blocked("second", times=2, deadline=TAKEOVER)
    assert effects.hits("second")[1].pid in even.children()
    odd.restart()
    outlives_its_lease(durable, result.id)
    even.kill()
    effects.wait_until_blocked("second", times=3, deadline=TAKEOVER)
    effects.release("second")

    assert len(result.get(timeout=LONG)) == 3
    assert effects.counts(*STEPS) == [1, 3, 1]
    assert journal(durable.redis, result.id)["attempt"] == "3"


def outlives_its_lease(durable: DurableSetup, task_id: str) -> None:
    """Wait until a lease has been renewed for longer than it lasts, by the same attempt."""
    [leases] = durable.redis.scan_iter(match="*:leases")
    first, attempt = durable.redis.zscore(leases, task_id), journal(durable.redis, task_id)["attempt"]
    eventually(lambda: durable.redis.zscore(leases, task_id) > first + 2000)
    assert journal(durable.redis, task_id)["attempt"] == attempt
