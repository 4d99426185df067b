"""`python -m tests.journals.record FOLDER`: the journals that the installed version leaves, and what comes of them."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from celery_durable import cancel
from tests.journals import tasks
from tests.journals.drive import Golden
from tests.servers import RedisServer

Record = Callable[[Golden], None]

CASES: dict[str, tuple[str, list[Any], Record]] = {}
"""By name: the task, its arguments, and how far the run comes."""


def case(task: str, *args: Any) -> Callable[[Record], Record]:
    def register(record: Record) -> Record:
        CASES[record.__name__] = (f"golden.{task}", list(args), record)
        return record

    return register


@contextmanager
def broken(*names: str) -> Iterator[None]:
    tasks.broken.update(names)
    yield
    tasks.broken.clear()


# -- live runs ---------------------------------------------------------------------------------------------------------


@case("values", "o-1")
def every_kind_of_value(run: Golden) -> None:
    run.begin("o-1")


@case("draws")
def draws_and_waits(run: Golden) -> None:
    run.begin()


@case("failures")
def failures_that_were_caught_and_one_that_is_retried(run: Golden) -> None:
    with broken("again"):
        run.begin()
        run.go_on()


@case("policy")
def failed_attempts_by_the_policy_of_the_task(run: Golden) -> None:
    with broken("flaky"):
        run.begin()
        run.go_on()


@case("dies")
def a_process_that_died_in_a_step(run: Golden) -> None:
    with broken("deadly"):
        for attempt in (run.begin, run.go_on):
            if (child := os.fork()) == 0:
                attempt()
            os.waitpid(child, 0)


@case("cancelled")
def asked_to_be_cancelled(run: Golden) -> None:
    run.begin()
    cancel(run.task_id, run.app)


@case("cancelled")
def cancelled_and_compensating(run: Golden) -> None:
    asked_to_be_cancelled(run)
    with broken("undo"):
        run.go_on()


@case("branches")
def branches_that_wait(run: Golden) -> None:
    run.begin()


@case("branches")
def branches_that_were_cut_off(run: Golden) -> None:
    with broken("b y first"):
        run.begin()


@case("changed", 1)
def retried_with_other_arguments(run: Golden) -> None:
    run.begin(1)


# -- runs that have ended ----------------------------------------------------------------------------------------------


@case("succeeds")
def a_success(run: Golden) -> None:
    run.begin()


@case("succeeds")
def a_success_that_was_not_delivered(run: Golden) -> None:
    run.begin()
    run.client.hdel(run.keys.run, "delivered")
    run.client.persist(run.keys.run)
    run.client.zadd(run.keys.leases, {run.task_id: 1})
    run.app.backend.forget(run.task_id)


@case("fails")
def a_terminal_failure(run: Golden) -> None:
    with broken("last"):
        run.begin()


@case("policy")
def a_policy_that_is_spent(run: Golden) -> None:
    with broken("flaky"):
        run.begin()
        run.go_on()
        run.go_on()


@case("cancelled")
def a_run_that_was_cancelled(run: Golden) -> None:
    asked_to_be_cancelled(run)
    run.go_on()


@case("ignored")
def a_run_that_was_ignored(run: Golden) -> None:
    run.begin()


# -- to files ----------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with RedisServer() as server:
        app = tasks.app_with(server.url())
        with server.client() as client:
            for name, (task, args, record) in CASES.items():
                run = Golden(app, client, task, str(uuid5(NAMESPACE_URL, f"{folder.name}/{name}")))
                record(run)
                document = {"task": task, "task_id": run.task_id, "args": args, "journal": _neutral(run.journal)}
                document |= {"expires": client.ttl(run.keys.run) > 0}
                document |= {"sets": [key for key in ("leases", "due") if _stands_in(run, key)]}
                tasks.executed.clear()
                run.finish()
                document |= {"executes": sorted(tasks.executed), "end": run.end}
                text = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True)
                (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        app.close()


def _neutral(journal: dict[str, str]) -> dict[str, str]:
    """Without what only says where it was recorded."""
    paths = {name: re.sub(r'File \\\\?"[^"]*/', r'File \\"', text) for name, text in journal.items()}
    return {**paths, "owner": "worker:1"}


def _stands_in(run: Golden, key: str) -> bool:
    return run.client.zscore(getattr(run.keys, key), run.task_id) is not None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
