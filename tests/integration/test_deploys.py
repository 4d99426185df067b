"""Code that changes while a run is under way: one build of a task after, or beside, another on the same journal."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from pydantic import BaseModel, Field, model_validator

from celery_durable import (
    DurableContext,
    DurableTask,
    JournalMismatchError,
    RunOptions,
    Runs,
    TerminalError,
    durable_task,
)
from celery_durable.app.store import store_of
from celery_durable.config import build
from celery_durable.journal.layout import Wait
from celery_durable.journal.port import Busy, Opened
from celery_durable.operate.verbs.cancelling import cancel
from celery_durable.records import Run
from celery_durable.steps.attempt import Attempt
from tests.integration.runs import app_at, delivery, execute, lapse, new_id

LONG_AGO = 1


def first() -> str:
    return "first"


class Deploy:
    """Several builds of one task, and one run of it."""

    def __init__(self, app: Celery, client: "redis.Redis") -> None:
        self.app = app
        self.client = client
        self.task_id = new_id()

    def run(self, body: Callable[..., Any], **options: Any) -> str:
        """Let a worker that has this build of the task take the run, as soon as that is due; return the state."""
        task = self.app._task_from_fun(body, name="shop.order", base=DurableTask, bind=True, **options)  # noqa: SLF001
        self.app._tasks.pop("shop.order")  # noqa: SLF001  the next build is another one
        if self.journal.get("status") == "suspended":
            self.client.hset(self.key, "due", LONG_AGO)
        return execute(task, task_id=self.task_id)

    @property
    def key(self) -> str:
        return store_of(self.app).keys(self.task_id).run

    @property
    def journal(self) -> dict[str, str]:
        return self.client.hgetall(self.key)

    @property
    def entries(self) -> list[dict[str, Any]]:
        steps = sorted((int(name[5:]), text) for name, text in self.journal.items() if name.startswith("step:"))
        return [json.loads(text) for _, text in steps]

    @property
    def names(self) -> list[str]:
        return [entry["name"] for entry in self.entries]

    @property
    def stalled(self) -> dict[str, Any]:
        return json.loads(self.journal.get("stalled") or "{}")

    @property
    def shown(self) -> Run:
        return Runs(self.app).get(self.task_id)

    @property
    def result(self) -> AsyncResult[Any]:
        return self.app.AsyncResult(self.task_id)

    def go_back(self, seconds: float) -> None:
        """Let the first stall be so much longer ago."""
        stalled = self.stalled
        stalled["since"] -= round(seconds * 1000)
        self.client.hset(self.key, "stalled", json.dumps(stalled))


@pytest.fixture
def deploy(redis_url: str, redis_client: redis.Redis) -> Iterator[Deploy]:
    with deploy_at(redis_url, redis_client) as made:
        yield made


@contextmanager
def deploy_at(url: str, client: redis.Redis, **conf: Any) -> Iterator[Deploy]:
    with app_at(url, **conf) as app:
        yield Deploy(app, client)


def old(self: Any) -> str:
    self.ctx.run("reserve", first)
    self.ctx.sleep(60)
    return str(self.ctx.run("charge", first))


def renamed(self: Any) -> str:
    self.ctx.run("reserve stock", first)
    self.ctx.sleep(60)
    return str(self.ctx.run("charge", first))


def shorter(self: Any) -> str:
    return str(self.ctx.run("reserve", first))


def failing(self: Any) -> None:
    self.ctx.run("reserve", first)
    raise TerminalError("no")


# -- a stall, and who goes on ------------------------------------------------------------------------------------------


def test_what_another_build_recorded_stalls_the_run(deploy: Deploy) -> None:
    deploy.run(old)
    before = deploy.journal

    assert deploy.run(renamed) == "IGNORED"

    after = deploy.journal
    steps = {name for name in before if name.startswith("step:")}
    assert {name: after[name] for name in steps} == {name: before[name] for name in steps}
    assert {name for name in after if name.startswith("step:")} == steps
    assert after["status"] == "suspended"
    ours = build_of(deploy, renamed)
    misfit = {
        "position": "1",
        "found": "step 'reserve'",
        "found_build": before["build"],
        "expected": "step 'reserve stock'",
        "expected_build": ours,
    }
    assert deploy.stalled.items() >= {**misfit, "times": 1}.items()
    assert before["build"] != ours
    assert deploy.result.state == "STALLED"
    assert deploy.result.info.items() >= misfit.items()
    fails_at = datetime.fromtimestamp(deploy.stalled["fails_at"] / 1000, timezone.utc)
    assert datetime.fromisoformat(deploy.result.info["fails_at"]) == fails_at
    assert deploy.shown.waits_for == (
        f"code that fits: step 'reserve' is recorded at 1, and build {ours} asks for step 'reserve stock'; it "
        f"fails at {fails_at:%Y-%m-%d %H:%M:%S}+00:00 if no such code comes"
    )
    assert 400 < int(after["due"]) - deploy.stalled["since"] < 1200


def build_of(deploy: Deploy, body: Callable[..., Any]) -> str:
    return build.of(body)


@pytest.mark.parametrize("other", [shorter, failing])
def test_entries_left_over_stall_the_run(deploy: Deploy, other: Callable[..., Any]) -> None:
    deploy.run(old)

    assert deploy.run(other) == "IGNORED"

    assert deploy.result.state == "STALLED"
    assert (deploy.stalled["found"], deploy.stalled["expected"]) == ("sleep 'sleep'", "the end of the task")


def test_a_build_that_fits_goes_on(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.run(renamed)
    elapse(deploy)

    assert deploy.run(old) == "SUCCESS"

    assert deploy.result.get(timeout=5) == "first"
    assert deploy.stalled == {}


def elapse(deploy: Deploy) -> None:
    """Let what the run sleeps for be over."""
    for name, text in deploy.journal.items():
        if name.startswith("step:") and '"sleeping"' in text:
            deploy.client.hset(deploy.key, name, json.dumps({**json.loads(text), "until": LONG_AGO}))


def test_by_the_same_build_it_is_a_failure_at_once(deploy: Deploy) -> None:
    def undecided(self: Any) -> None:
        self.ctx.run(f"attempt {self.ctx.attempt}", first)
        self.ctx.sleep(60)

    deploy.run(undecided)

    assert deploy.run(undecided) == "FAILURE"

    assert type(deploy.result.result).__name__ == "JournalMismatchError"
    assert "stalled" not in deploy.journal


def test_a_message_that_comes_too_early_finds_the_run_stalled(deploy: Deploy) -> None:
    deploy.run(old)
    early = open_again(deploy)
    deploy.run(renamed)
    assert (early.waits, open_again(deploy).waits) == (Wait.SLEEP, Wait.STALL)


def open_again(deploy: Deploy) -> Busy:
    facts = {name: deploy.journal[name] for name in ("task", "fingerprint")}
    verdict = store_of(deploy.app).journal(deploy.task_id).open(delivery(deploy.task_id, **facts))
    assert isinstance(verdict, Busy)
    return verdict


def test_pauses_double_to_half_a_minute(deploy: Deploy) -> None:
    deploy.run(old)
    longest = [1, 2, 4, 8, 16, 30, 30]
    for at_most, pause in zip(longest, pauses(deploy, len(longest)), strict=True):
        assert at_most / 2 - 0.2 < pause < at_most + 0.2


def pauses(deploy: Deploy, number: int) -> list[float]:
    """Seconds between one stall and the next sending, so many times."""
    found = []
    for _ in range(number):
        deploy.run(renamed)
        facts = deploy.journal
        found.append((int(facts["due"]) - int(facts["opened"])) / 1000)
    return found


def test_pauses_are_of_no_whole_seconds(deploy: Deploy) -> None:
    """Workers ask Redis for messages once a second, each at its own moment: the same one would get each of them."""
    deploy.run(old)
    fractions = [pause % 1 for pause in pauses(deploy, 20)]
    assert max(fractions) - min(fractions) > 0.3


def test_after_the_stall_timeout_the_run_has_failed(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.run(renamed)
    deploy.go_back(3590)
    assert deploy.run(renamed) == "IGNORED"
    assert int(deploy.journal["due"]) <= deploy.stalled["since"] + 3600_000
    deploy.go_back(20)

    assert deploy.run(renamed) == "FAILURE"

    error = deploy.result.result
    assert type(error).__name__ == "JournalMismatchError"
    assert f"by build: {deploy.journal['build']}, here: {build_of(deploy, renamed)}" in str(error)
    assert deploy.names == ["reserve", "sleep"]


@pytest.mark.parametrize("option", ["setting", "task"])
def test_without_a_stall_timeout_it_fails_at_once(redis_url: str, redis_client: redis.Redis, option: str) -> None:
    conf = {"durable_stall_timeout": 0} if option == "setting" else {}
    with deploy_at(redis_url, redis_client, **conf) as deploy:
        deploy.run(old)
        assert deploy.run(renamed, **({"stall_timeout": 0} if option == "task" else {})) == "FAILURE"


def test_without_a_stall_timeout_it_fails_however_the_clock_ticks(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readings of the clock may be in two milliseconds."""
    ticks, now = count(), Attempt.now
    monkeypatch.setattr(Attempt, "now", lambda attempt: now(attempt) + next(ticks))
    with deploy_at(redis_url, redis_client, durable_stall_timeout=0) as deploy:
        deploy.run(old)
        assert deploy.run(renamed) == "FAILURE"


def test_a_retry_of_a_run_that_failed_so_goes_on_with_a_build_that_fits(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.run(renamed)
    deploy.go_back(4000)
    assert deploy.run(renamed) == "FAILURE"

    assert deploy.run(renamed) == "IGNORED", "reopened, it has all of its time again"
    assert deploy.stalled["times"] == 1
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


def test_a_stalled_attempt_counts_nowhere(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.client.hset(deploy.key, mapping={"recoveries": 3, "failures": 2, "failing_since": 5, "due": LONG_AGO})
    counts = ("failures", "failing_since", "resume")
    before = {name: deploy.journal.get(name) for name in counts}
    die(deploy)
    die(deploy)

    deploy.run(renamed)
    deploy.run(renamed)

    assert {name: deploy.journal.get(name) for name in counts} == before
    assert deploy.journal["recoveries"] == "2"
    die(deploy)
    deploy.run(renamed)
    assert deploy.journal["recoveries"] == "3", "those that died go on to count, whatever stalled in between"


def die(deploy: Deploy) -> None:
    """An attempt begins, and its process dies."""
    facts = {name: deploy.journal[name] for name in ("task", "fingerprint")}
    deploy.client.hset(deploy.key, "due", LONG_AGO)
    store = store_of(deploy.app)
    assert isinstance(store.journal(deploy.task_id).open(delivery(deploy.task_id, **facts, build="dies")), Opened)
    lapse(deploy.client, store, deploy.task_id)


def test_the_time_of_a_stall_begins_again_when_an_attempt_has_got_past_it(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.run(renamed)
    deploy.go_back(3000)

    def longer(self: Any) -> None:
        self.ctx.run("reserve", first)
        self.ctx.sleep(0)
        self.ctx.run("pay", lambda: 1 / 0, RunOptions(initial_retry_interval=60))

    elapse(deploy)
    assert deploy.run(longer) == "RETRY"
    assert deploy.stalled == {}
    deploy.run(renamed)

    assert time.time() * 1000 - deploy.stalled["since"] < 10_000


def test_it_begins_again_before_the_next_action_starts(deploy: Deploy) -> None:
    """A step that runs for hours, and dies with its process: the attempt had got past the stall."""
    deploy.run(old)
    deploy.run(renamed)
    seen = []

    def looks(self: Any) -> None:
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        self.ctx.run("charge", lambda: seen.append(deploy.stalled), RunOptions(max_attempts=1))

    elapse(deploy)
    deploy.run(looks)
    assert seen == [{}]


def test_no_code_of_the_user_sees_a_stall(deploy: Deploy) -> None:
    caught = []

    def catches(self: Any) -> str:
        try:
            self.ctx.run("reserve stock", first)
        except Exception as error:
            caught.append(error)
        return "done"

    deploy.run(old)
    assert deploy.run(catches) == "IGNORED"
    assert not caught


def test_a_cancelled_run_tells_its_code_when_a_build_that_fits_has_come(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.run(renamed)
    cancel(deploy.task_id, deploy.app)
    assert int(deploy.journal["due"]) <= time.time() * 1000 + 1

    # It was told at once, and stalls again; its pauses go on, or two workers would send it to and fro without end.
    deploy.run(renamed)
    journal = deploy.journal
    assert 1000 <= int(journal["due"]) - int(journal["left"]) <= 2000, "the first pause lasts for half of that"
    assert deploy.result.state == "STALLED"
    assert deploy.shown.waits_for.endswith(". It is cancelled, and such code is told so")

    assert deploy.run(old) == "IGNORED"
    assert deploy.result.state == "REVOKED"


# -- which build recorded what -----------------------------------------------------------------------------------------


def test_an_entry_names_its_build_if_that_is_not_the_one_of_the_run(deploy: Deploy) -> None:
    def longer(self: Any) -> None:
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        self.ctx.run("charge", first)
        self.ctx.run("limited", first, RunOptions(max_attempts=3))
        self.ctx.sleep(60, "long")

    deploy.run(old)
    elapse(deploy)
    deploy.run(longer)

    new = build_of(deploy, longer)
    assert [entry.get("build") for entry in deploy.entries] == [None, None, new, new, new]
    assert deploy.journal["build"] == build_of(deploy, old)
    assert deploy.journal["attempt_build"] == f"2:{new}"

    assert deploy.run(old) == "IGNORED", "leftover entries of another build"
    elapse(deploy)
    assert deploy.run(longer) == "SUCCESS"


def test_a_named_build_takes_the_place_of_the_fingerprint(redis_url: str, redis_client: redis.Redis) -> None:
    with deploy_at(redis_url, redis_client, durable_build="7") as deploy:
        deploy.run(old)
        assert deploy.journal["build"] == "7"
        assert deploy.run(renamed, build="8") == "IGNORED"
        assert (deploy.stalled["found_build"], deploy.stalled["expected_build"]) == ("7", "8")
        assert deploy.run(renamed) == "FAILURE", "who names builds says that this is the same"


def test_a_method_that_is_called_build_names_none(redis_url: str) -> None:
    class Ci(DurableTask[Any, Any]):
        name = "ci"

        def build(self) -> str:
            return "wheel"

        def run(self) -> str:
            return self.build()

    with app_at(redis_url) as app:
        task = app.register_task(Ci())
        assert task.durable_settings.build is None


def test_what_0_1_0_recorded_is_of_an_unknown_build(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.client.hdel(deploy.key, "build", "attempt_build")

    deploy.run(renamed)
    assert deploy.stalled["found_build"] == "unknown"
    deploy.client.hset(deploy.key, "due", LONG_AGO)
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


def test_where_0_1_0_has_been_in_between_no_entry_is_taken_for_that_of_the_run(deploy: Deploy) -> None:
    deploy.run(old)
    # What an attempt of it leaves.
    deploy.client.hincrby(deploy.key, "attempt", 1)
    deploy.client.hset(deploy.key, "step:1", '{"name":"else","state":"done","attempts":1,"at":1,"ms":1,"value":1}')

    assert deploy.run(old) == "IGNORED"

    assert deploy.stalled["found_build"] == "unknown"
    assert deploy.journal["build"] == ""


def test_a_value_that_another_build_recorded_and_this_one_cannot_read_stalls_the_run(deploy: Deploy) -> None:
    def stay() -> "tuple[Night, ...]":
        return (Night(number=1),)

    def stay_renamed() -> "tuple[Week, ...]":
        raise AssertionError

    def before(self: Any) -> None:
        self.ctx.run("stay", stay)
        self.ctx.sleep(60)

    def after(self: Any) -> None:
        self.ctx.run("stay", stay_renamed)
        self.ctx.sleep(60)

    deploy.run(before)
    assert deploy.run(after) == "IGNORED"
    assert deploy.stalled["found"].startswith("step 'stay', ValidationError")
    elapse(deploy)
    assert deploy.run(before) == "SUCCESS"


class Night(BaseModel):
    number: int


class Week(BaseModel):
    weeks: int


# -- newer versions ----------------------------------------------------------------------------------------------------


def test_a_run_of_a_newer_layout_stalls_until_a_worker_can_read_it(deploy: Deploy) -> None:
    deploy.run(old)
    layout = deploy.journal["v"]
    deploy.client.hset(deploy.key, "v", "99")

    assert deploy.run(old) == "IGNORED"
    assert (deploy.stalled["found"], deploy.result.state) == ("layout 99", "STALLED")

    deploy.client.hset(deploy.key, "v", layout)
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


def test_an_entry_of_a_kind_that_is_not_known_stalls_the_run(deploy: Deploy) -> None:
    deploy.run(old)
    known = deploy.journal["step:1"]
    newer = json.dumps({"name": "reserve", "state": "called", "child": "x", "build": "newer"})
    deploy.client.hset(deploy.key, "step:1", newer)

    assert deploy.run(old) == "IGNORED"
    assert deploy.stalled["found"] == "called 'reserve'"
    assert deploy.journal["step:1"] == newer

    deploy.client.hset(deploy.key, "step:1", known)
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


@pytest.mark.parametrize("build", [{}, {"build": "newer"}], ids=["same build", "another build"])
@pytest.mark.parametrize("state", ["called", "started", "done"])
def test_a_newer_kind_of_entry_stalls_the_run_and_is_told_as_that(
    deploy: Deploy, state: str, build: dict[str, str]
) -> None:
    deploy.run(old)
    known = deploy.journal["step:1"]
    newer = {"name": "reserve", "kind": "call", "state": state, "child": "x", **build}
    deploy.client.hset(deploy.key, "step:1", json.dumps(newer, separators=(",", ":")))

    assert deploy.run(old) == "IGNORED"
    assert deploy.stalled["found"] == "call 'reserve' (of a newer version)"
    assert json.loads(deploy.journal["step:1"]) == newer

    deploy.client.hset(deploy.key, "step:1", known)
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


@pytest.mark.parametrize(
    ("field", "text", "found"),
    [
        ("v", "99", "  position: its layout\n  recorded: layout 99\n  asked for: layout 2 or older\n"),
        (
            "step:1",
            '{"name":"reserve","kind":"call","state":"called","build":"b9"}',
            "  position: 1\n  recorded: call 'reserve' (of a newer version)\n  asked for: step 'reserve'\n",
        ),
    ],
    ids=["layout", "kind"],
)
def test_what_no_worker_can_read_in_time_says_that_a_newer_version_wrote_it(
    deploy: Deploy, field: str, text: str, found: str
) -> None:
    deploy.run(old)
    deploy.client.hset(deploy.key, field, text)

    assert deploy.run(old, stall_timeout=0) == "FAILURE"

    error = deploy.result.result
    assert type(error) is JournalMismatchError
    assert f"its journal was written by a newer version of celery-durable.\n{found}" in str(error)
    assert "Upgrade celery-durable in the workers" in str(error)
    assert "damaged" not in str(error)


@pytest.mark.parametrize("mark", ["encoding", "sealed"])
def test_a_value_that_is_kept_in_a_way_that_is_not_known_stalls_the_run(deploy: Deploy, mark: str) -> None:
    deploy.run(old)
    known = deploy.journal["step:1"]
    deploy.client.hset(deploy.key, "step:1", known.replace(',"value"', f',"{mark}":"newer","build":"newer","value"'))

    assert deploy.run(old) == "IGNORED"
    assert "that this version does not know" in deploy.stalled["found"]

    deploy.client.hset(deploy.key, "step:1", known)
    elapse(deploy)
    assert deploy.run(old) == "SUCCESS"


# -- changes that take effect from where a run has not been yet --------------------------------------------------------


def patched(self: Any) -> str:
    self.ctx.run("reserve", first)
    if self.ctx.patched("check address"):
        self.ctx.run("check", first)
    self.ctx.sleep(60)
    return str(self.ctx.run("charge", first))


def deprecated(self: Any) -> str:
    self.ctx.run("reserve", first)
    self.ctx.patched("check address")
    self.ctx.run("check", first)
    self.ctx.sleep(60)
    return str(self.ctx.run("charge", first))


def removed(self: Any) -> str:
    self.ctx.run("reserve", first)
    self.ctx.run("check", first)
    self.ctx.sleep(60)
    return str(self.ctx.run("charge", first))


NEW, OLD = ["reserve", "check", "sleep", "charge"], ["reserve", "sleep", "charge"]


@pytest.mark.parametrize(
    ("builds", "names"),
    [
        ((patched, patched), NEW),
        ((old, patched), OLD),
        ((patched, deprecated), NEW),
        ((deprecated, patched), NEW),
        ((deprecated, removed), NEW),
        ((removed, deprecated), NEW),
        ((patched, removed), NEW),
    ],
    ids=lambda given: "-".join(one.__name__ for one in given) if callable(given[0]) else "",
)
def test_each_step_of_a_change_fits_its_neighbours(deploy: Deploy, builds: Any, names: list[str]) -> None:
    for body in builds:
        assert deploy.run(body) == "IGNORED"
        assert deploy.result.state == "SUSPENDED"
    elapse(deploy)
    assert deploy.run(builds[-1]) == "SUCCESS"
    assert deploy.names == names


def test_old_code_leaves_a_run_that_has_taken_the_change(deploy: Deploy) -> None:
    deploy.run(patched)
    deploy.run(old)
    assert deploy.result.state == "STALLED"
    elapse(deploy)
    assert deploy.run(patched) == "SUCCESS"
    assert deploy.names == NEW


def test_old_code_may_take_a_run_over_in_which_nothing_of_the_change_is_recorded(deploy: Deploy) -> None:
    """The process died before the step of the change was recorded: both builds can finish what comes of it."""

    def dies(self: Any) -> None:
        self.ctx.run("reserve", first)
        assert self.ctx.patched("check address")
        raise SystemExit

    with pytest.raises(SystemExit):
        deploy.run(dies)
    lapse_if_held(deploy)
    deploy.run(old)
    assert deploy.names == ["reserve", "sleep"]

    deploy.run(patched)
    elapse(deploy)
    assert deploy.run(patched) == "SUCCESS"
    assert deploy.names == OLD


def lapse_if_held(deploy: Deploy) -> None:
    deploy.client.zadd(store_of(deploy.app).keys(deploy.task_id).leases, {deploy.task_id: 0}, xx=True)


def test_in_a_loop_each_turn_decides_for_itself(deploy: Deploy) -> None:
    def loops(self: Any) -> None:
        for turn in range(4):
            self.ctx.run(f"item {turn}", first)
            self.ctx.sleep(60 if turn == 1 else 0, f"pause {turn}")

    def loops_patched(self: Any) -> list[bool]:
        taken = []
        for turn in range(4):
            taken.append(self.ctx.patched("notify"))
            if taken[-1]:
                self.ctx.run("notify", first)
            self.ctx.run(f"item {turn}", first)
            self.ctx.sleep(60 if turn == 2 else 0, f"pause {turn}")
        return taken

    deploy.run(loops)
    elapse(deploy)
    deploy.run(loops_patched)
    elapse(deploy)
    assert deploy.run(loops_patched) == "SUCCESS"
    assert deploy.result.get(timeout=5) == [False, False, True, True]


def test_several_changes_at_one_place_are_told_apart(deploy: Deploy) -> None:
    def one(self: Any) -> None:
        self.ctx.patched("a")
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)

    def two(self: Any) -> list[bool]:
        answers = [self.ctx.patched(name) for name in ("a", "b", "a")]
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        return answers

    deploy.run(one)
    assert deploy.entries[0]["patches"] == ["a"]
    elapse(deploy)
    assert deploy.run(two) == "SUCCESS"
    assert deploy.result.get(timeout=5) == [True, False, True]


def test_a_change_is_recorded_with_what_fails_and_with_what_is_retried(deploy: Deploy) -> None:
    outcomes = iter([ZeroDivisionError(), TerminalError("no")])

    def raises() -> None:
        raise next(outcomes)

    def retried(self: Any) -> None:
        answer = self.ctx.patched("a")
        with pytest.raises(TerminalError):
            self.ctx.run("pay", raises, RunOptions(initial_retry_interval=60, max_attempts=5))
        self.ctx.sleep(60)
        assert answer

    assert deploy.run(retried) == "RETRY"
    assert (deploy.entries[0]["state"], deploy.entries[0]["patches"]) == ("retrying", ["a"])
    assert deploy.run(retried) == "IGNORED"
    assert (deploy.entries[0]["state"], deploy.entries[0]["patches"]) == ("failed", ["a"])
    elapse(deploy)
    assert deploy.run(retried) == "SUCCESS"


@pytest.mark.parametrize("bad", [None, "", 7])
def test_the_id_of_a_change_is_a_text(deploy: Deploy, bad: Any) -> None:
    def wrong(self: Any) -> None:
        self.ctx.patched(bad)

    assert deploy.run(wrong) == "FAILURE"
    assert "the id of ctx.patched is a text" in str(deploy.result.result)


def path_of_old(self: Any) -> Any:
    async def branch(name: str) -> str:
        await self.ctx.run(f"{name} first", first)
        await self.ctx.sleep(60, f"{name} waits")
        return str(await self.ctx.run(f"{name} last", first))

    return asyncio.gather(branch("a"), branch("b"))


async def branched(self: Any) -> list[str]:
    return list(await path_of_old(self))


async def branched_patched(self: Any) -> list[str]:
    """What is side by side is another thing altogether."""
    if not self.ctx.patched("side by side"):
        return ["old", *await path_of_old(self)]

    async def branch(name: str) -> str:
        await self.ctx.sleep(60, f"{name} waits")
        return str(await self.ctx.run(f"{name} only", first))

    return list(await asyncio.gather(branch("c"), branch("d"), branch("e")))


async def patched_in_branches(self: Any) -> list[bool]:
    async def branch(name: str) -> bool:
        await self.ctx.run(f"{name} first", first)
        taken: bool = self.ctx.patched("wait no more")
        if not taken:
            await self.ctx.sleep(60, f"{name} waits")
        await self.ctx.run(f"{name} last", first)
        return taken

    return list(await asyncio.gather(branch("a"), branch("b")))


def test_branches_that_a_change_begins_are_its_own(deploy: Deploy) -> None:
    deploy.run(branched_patched)
    elapse(deploy)
    assert deploy.run(branched_patched) == "SUCCESS"
    assert deploy.result.get(timeout=5) == ["first", "first", "first"]


def test_branches_that_began_before_a_change_go_on_without_it(deploy: Deploy) -> None:
    deploy.run(branched)
    elapse(deploy)
    assert deploy.run(branched_patched) == "SUCCESS"
    assert deploy.result.get(timeout=5) == ["old", "first", "first"]


def test_old_code_leaves_branches_of_a_change_to_new_code(deploy: Deploy) -> None:
    deploy.run(branched_patched)
    before = deploy.journal
    deploy.run(branched)
    assert deploy.result.state == "STALLED"
    assert {name: text for name, text in deploy.journal.items() if name.startswith("step:")} == {
        name: text for name, text in before.items() if name.startswith("step:")
    }
    elapse(deploy)
    assert deploy.run(branched_patched) == "SUCCESS"


def test_a_branch_decides_for_itself(deploy: Deploy) -> None:
    """One has its wait behind the change, the other has not begun it."""
    deploy.run(branched)
    waits = next(name for name, text in deploy.journal.items() if "b waits" in text)
    deploy.client.hdel(deploy.key, waits)
    elapse(deploy)

    assert deploy.run(patched_in_branches) == "SUCCESS"

    assert deploy.result.get(timeout=5) == [False, True]


async def named_branches(self: Any, step: str) -> Any:
    async def work(key: str) -> Any:
        with self.ctx.branch(key):
            await self.ctx.run(step, first)
            await self.ctx.sleep(60, f"{key} waits")

    await asyncio.gather(work("a"), work("b"))
    return await self.ctx.run("last", first)


async def named(self: Any) -> Any:
    return await named_branches(self, "old")


async def named_patched(self: Any) -> Any:
    taken = self.ctx.patched("other steps")
    return [taken, await named_branches(self, "new" if taken else "old")]


@pytest.mark.parametrize(("begins", "taken"), [(named_patched, True), (named, False)])
def test_named_branches_go_on_as_they_began(deploy: Deploy, begins: Any, taken: bool) -> None:
    deploy.run(begins)
    elapse(deploy)
    assert deploy.run(named_patched) == "SUCCESS"
    assert deploy.result.get(timeout=5) == [taken, "first"]


def test_what_is_recorded_first_of_several_side_by_side_has_the_change(deploy: Deploy) -> None:
    """The first in program order is the last to be recorded: its worker dies before."""

    async def together(self: Any) -> list[Any]:
        taken = self.ctx.patched("a and b")
        names = ("a", "b") if taken else ("c", "d")
        slow, quick = self.ctx.run(names[0], lag), self.ctx.run(names[1], first)
        return [taken, *await asyncio.gather(slow, quick)]

    dies = [True]

    async def lag() -> str:
        if not dies:
            return "slow"
        dies.clear()
        await asyncio.sleep(0.5)
        raise SystemExit

    with pytest.raises(SystemExit):
        deploy.run(together)
    lapse_if_held(deploy)
    assert [name for name in deploy.journal if name.startswith("step:")] == ["step:2"]

    assert deploy.run(together) == "SUCCESS"
    assert deploy.result.get(timeout=5) == [True, "slow", "first"]


# -- docs/deploys.md: what may change ----------------------------------------------------------------------------------

Row = Callable[[Deploy], None]
ROWS: dict[str, Row] = {}


def row(change: str) -> Callable[[Row], Row]:
    """Register the test of a row of the table, which is named by its first cell."""

    def register(check: Row) -> Row:
        ROWS[change] = check
        return check

    return register


def goes_on(deploy: Deploy, before: Callable[..., Any], after: Callable[..., Any], names: list[str]) -> None:
    deploy.run(before)
    assert deploy.result.state == "SUSPENDED"
    elapse(deploy)
    assert deploy.run(after) == "SUCCESS"
    assert deploy.names == names


@row("what an action does, or where it is defined")
def _action(deploy: Deploy) -> None:
    def after(self: Any) -> str:
        self.ctx.run("reserve", lambda: "second")
        self.ctx.sleep(60)
        return str(self.ctx.run("charge", lambda: "second"))

    goes_on(deploy, old, after, OLD)
    assert deploy.result.get(timeout=5) == "second"


@row("the arguments or the options of a step")
def _options(deploy: Deploy) -> None:
    def after(self: Any) -> str:
        self.ctx.run("reserve", str, RunOptions(max_attempts=2), "argument")
        self.ctx.sleep(30)
        return str(self.ctx.run("charge", str, RunOptions(timeout=5), "argument"))

    goes_on(deploy, old, after, OLD)


@row("a step added or removed after the point that a run has reached")
def _behind(deploy: Deploy) -> None:
    def after(self: Any) -> str:
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        self.ctx.run("check", first)
        self.ctx.sleep(60, "again")
        return str(self.ctx.run("charge", first))

    deploy.run(old)
    elapse(deploy)
    deploy.run(after)
    assert deploy.result.state == "SUSPENDED"
    deploy.run(old)
    assert deploy.result.state == "STALLED"
    elapse(deploy)
    assert deploy.run(after) == "SUCCESS"
    assert deploy.names == ["reserve", "sleep", "check", "again", "charge"]


@row("a step added, removed, renamed or moved before that point")
def _before(deploy: Deploy) -> None:
    def added(self: Any) -> None:
        self.ctx.run("check", first)
        old(self)

    def moved(self: Any) -> None:
        self.ctx.sleep(60)
        self.ctx.run("reserve", first)

    deploy.run(old)
    for after in (added, renamed, moved, shorter):
        assert deploy.run(after) == "IGNORED"
        assert deploy.result.state == "STALLED"
    deploy.go_back(4000)
    assert deploy.run(renamed) == "FAILURE"


@row("the same with `ctx.patched`")
def _patched(deploy: Deploy) -> None:
    goes_on(deploy, old, patched, OLD)


@row("a `uuid`, `random` or `time` added or removed")
def _draws(deploy: Deploy) -> None:
    def before(self: Any) -> str:
        charged = self.ctx.uuid()
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        return str(charged)

    def after(self: Any) -> list[str]:
        more, charged = self.ctx.uuid(), self.ctx.uuid()
        self.ctx.run("reserve", first)
        self.ctx.sleep(60)
        return [str(more), str(charged)]

    goes_on(deploy, before, after, OLD[:2])
    assert deploy.result.get(timeout=5)[0] == deploy.journal["uuid:1"], "the first of the new code is that of the old"


@row("the return type of an action")
def _type(deploy: Deploy) -> None:
    test_a_value_that_another_build_recorded_and_this_one_cannot_read_stalls_the_run(deploy)


class Name(BaseModel):
    name: str
    age: int = 3


class Grown(BaseModel):
    name: Annotated[str, Field(max_length=1)]
    age: Annotated[int, Field(gt=17)]

    @model_validator(mode="after")
    def _is_refused(self) -> "Grown":
        raise ValueError("not any more")


class FullName(BaseModel):
    full_name: str
    title: str = "Dr."

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"full_name": data["name"]} if "name" in data else data


def reads(deploy: Deploy, model: type[BaseModel]) -> Any:
    """Record a name, and let other code replay it as another model."""

    def before(self: Any) -> None:
        self.ctx.run("reserve", lambda: Name(name="Ada"), RunOptions(type_hint=Name))
        self.ctx.sleep(60)

    def after(self: Any) -> Any:
        replayed = self.ctx.run("reserve", lambda: None, RunOptions(type_hint=model))
        self.ctx.sleep(60)
        return replayed.model_dump()

    goes_on(deploy, before, after, OLD[:2])
    return deploy.result.get(timeout=5)


@row("the validators and limits of a model")
def _validators(deploy: Deploy) -> None:
    assert reads(deploy, Grown) == {"name": "Ada", "age": 3}


@row("the fields of a model: a field added with a default, a field removed")
def _fields(deploy: Deploy) -> None:
    assert reads(deploy, FullName) == {"full_name": "Ada", "title": "Dr."}


def auto_retry(deploy: Deploy, fun: Callable[..., Any]) -> str:
    """Let a worker take the run that has this function as its `@durable_task`, with the argument 1."""
    durable_task(app=deploy.app, name="shop.order")(fun)
    task = deploy.app.tasks["shop.order"]
    del deploy.app._tasks["shop.order"]  # noqa: SLF001
    if deploy.journal:
        deploy.client.hset(deploy.key, "due", LONG_AGO)
    return execute(task, 1, task_id=deploy.task_id)


def one(ctx: DurableContext, number: int) -> str:
    ctx.sleep(60)
    return str(number)


@row("a parameter of the task, added with a default")
def _default(deploy: Deploy) -> None:
    def after(ctx: DurableContext, number: int, how: str = "by mail") -> str:
        ctx.sleep(60)
        return f"{number} {how}"

    auto_retry(deploy, one)
    elapse(deploy)
    assert auto_retry(deploy, after) == "SUCCESS"
    assert deploy.result.get(timeout=5) == "1 by mail"


@row("a parameter of a `@durable_task`, added without one, or removed")
def _parameters(deploy: Deploy) -> None:
    def more(ctx: DurableContext, number: int, how: str) -> str:
        ctx.sleep(60)
        return f"{number} {how}"

    def less(ctx: DurableContext) -> str:
        ctx.sleep(60)
        return "none"

    auto_retry(deploy, one)
    for after in (more, less):
        assert auto_retry(deploy, after) == "IGNORED"
        assert deploy.result.state == "STALLED"
    elapse(deploy)
    assert auto_retry(deploy, one) == "SUCCESS"


@row("the name of the task, or the module that gives it its name")
def _name(deploy: Deploy) -> None:
    deploy.run(old)
    deploy.client.hset(deploy.key, "due", LONG_AGO)
    store = store_of(deploy.app)
    deploy.client.zadd(store.keys(deploy.task_id).due, {deploy.task_id: LONG_AGO}, xx=True)

    found = [run for known in ("shop.renamed", "shop.order") for each in store.runs.claim([known]) for run in each.runs]

    assert [(run.task_id, run.task) for run in found] == [(deploy.task_id, "shop.order")]


@pytest.mark.parametrize("change", ROWS)
def test_a_row_of_the_table(deploy: Deploy, change: str) -> None:
    ROWS[change](deploy)


def test_every_row_of_the_table_has_a_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploys.md").read_text("utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows == ["change", *ROWS]


def test_arguments_that_never_fitted_fail_at_once(deploy: Deploy) -> None:
    def fits_not(ctx: DurableContext) -> None: ...

    assert auto_retry(deploy, fits_not) == "FAILURE"
