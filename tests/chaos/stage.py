"""Where one round is played: a Redis for the broker and one for the journals, two workers, and the file of effects."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import kombu.pools
import redis
from celery import Celery
from typing_extensions import Self

from celery_durable.exceptions import DurableError
from celery_durable.operate.runs import Runs
from tests.chaos import effects
from tests.chaos.evidence import TOLD, Run
from tests.chaos.programs import operations
from tests.integration.network import Proxy
from tests.processes import Process, members
from tests.servers import RedisServer

QUEUE = "celery"
WORKERS = 2
RESULT = "celery-task-meta-"
"""What the key of a result begins with."""
WRITING_DB = 2
"""Of the broker: where the messages of tests are written, which are kept before they are sent."""
TERMS_VARIABLE = "DURABLE_CHAOS"

COMPILER = shutil.which("cc")
"""Makes what skews the clock of a worker; without it all clocks are right."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """What differs from round to round."""

    lease: float
    visibility_timeout: float
    """Short: the broker delivers again what is not acknowledged. Long: nobody does but the journal."""
    inline_retry_limit: float
    concurrency: int
    backend_db: int
    """Where results are: 0, as the journals are, which then write those on which nothing else hangs."""
    builds: tuple[str, str]
    """Of the two workers: whether they have old or new code."""
    step_threads: int
    """Of a process, for the sync steps of its async tasks."""

    @classmethod
    def drawn(cls, rng: Random) -> Self:
        return cls(
            lease=2.0,
            visibility_timeout=rng.choice([4, 3600]),
            inline_retry_limit=rng.choice([0, 0.1]),
            concurrency=rng.choice([2, 3]),
            backend_db=rng.choice([0, 1]),
            builds=rng.choice([("old", "old"), ("old", "new")]),
            step_threads=rng.choice([1, 2, 3]),
        )


class JournalServer(RedisServer):
    """A server whose append-only file is never rewritten: it is the history of everything."""

    def options(self) -> list[str]:
        return [*super().options(), "--auto-aof-rewrite-percentage", "0"]


class Worker:
    """One life of one worker."""

    def __init__(self, process: Process, build: str) -> None:
        self.process = process
        self.build = build

    @property
    def running(self) -> bool:
        return self.process.exit_code is None

    def pids(self) -> frozenset[int]:
        """Return the ids of all its processes."""
        return frozenset(process.pid for process in members(self.process.pid))


class Stage:
    """The servers and workers of a round."""

    def __init__(self, terms: Terms, rng: Random, folder: Path) -> None:
        self.terms = terms
        self.folder = folder
        self.effects = folder / "effects"
        self.effects.touch()
        self.broker = RedisServer(appendonly=True)
        self.journal = JournalServer(appendonly=True)
        self.workers: list[Worker] = []
        self.executing: set[int] = set()
        """The processes that are in the body of a task, as far as their lines tell."""
        self._processes: list[Process] = []
        self._rng = rng
        self._started = 0
        self._letters: dict[str, str] = {}
        self._purged: set[str] = set()
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with self._ending:
            self._ending.enter_context(self.broker)
            self._ending.enter_context(self.journal)
            self.proxy = self._ending.enter_context(Proxy(self.journal))
            self._writer = self._ending.enter_context(_writer(self.broker.url(WRITING_DB)))
            self.reader = effects.Reader(self.effects)
            self._ending.callback(self.reader.close)
            self._ending.callback(self._end_workers)
            for _ in range(WORKERS):
                self.start_worker()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.close()

    # -- workers

    def start_worker(self, skew: int = 0) -> None:
        """Start a worker, its wall clock shifted by so many seconds; do not wait for it."""
        self._started += 1
        name = f"worker{self._started}@chaos"
        arguments = ["-m", "celery", "-A", "tests.chaos.app", "worker", "-n", name, "-l", "INFO"]
        arguments += ["--pool=prefork", f"--concurrency={self.terms.concurrency}"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        log = self.folder / f"{name}.log"
        # The code of the one whose heading it takes.
        missing = Counter(self.terms.builds) - Counter(worker.build for worker in self.workers)
        build = next(iter(missing), self.terms.builds[0])
        env = {TERMS_VARIABLE: json.dumps(self._terms_of_a_worker(build))}
        if skew:
            env |= {"LD_PRELOAD": str(self._skewed_clock), "SKEWED_CLOCK": str(skew)}
        process = Process([sys.executable, *arguments], log, env)
        self._processes.append(process)
        self.workers.append(Worker(process, build))

    @cached_property
    def _skewed_clock(self) -> Path:
        assert COMPILER, "there is no C compiler on PATH"
        source, library = Path(__file__).with_name("skewed_clock.c"), self.folder / "skewed_clock.so"
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        return library

    def _terms_of_a_worker(self, build: str) -> dict[str, Any]:
        terms = self.terms
        transport = {
            "visibility_timeout": terms.visibility_timeout,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
        journal = self._rng.choice([self.journal.url(), self.proxy.url])
        conf = {
            "broker_transport_options": transport,
            "worker_prefetch_multiplier": 1,
            "durable_redis_url": journal,
            "durable_build": build,
            "durable_lease": terms.lease,
            "durable_inline_retry_limit": terms.inline_retry_limit,
            "durable_step_threads": terms.step_threads,
        }
        backend = self.journal.url(terms.backend_db) if terms.backend_db else journal
        return {"broker": self.broker.url(), "backend": backend, "effects": str(self.effects), "conf": conf}

    def forget(self, worker: Worker) -> None:
        """A worker has ended, or is about to."""
        self.workers.remove(worker)

    def _end_workers(self) -> None:
        for process in self._processes:
            process.kill()

    # -- messages and results

    def send(self, run: Run) -> None:
        with self.broker.client() as client:
            client.lpush(QUEUE, self._letter(run))

    def send_again(self, run: Run) -> None:
        """Let its message arrive, as if the broker delivered it again."""
        self._letter(run)
        self.repeat(run.id)

    def repeat(self, run: str) -> None:
        """Let a copy of its message arrive; not as a new one, which would be a Retry of a run that has failed."""
        self.put(json.loads(self._letters[run]))

    def _letter(self, run: Run) -> str:
        """Return the message of a run as it goes to the broker."""
        if run.id not in self._letters:
            self._writer.send_task(f"chaos.{run.task}", args=[run.program], task_id=run.id)
            with self.broker.client(WRITING_DB) as client:
                self._letters[run.id] = str(client.rpop(QUEUE))
        return self._letters[run.id]

    def purge_one(self, rng: Random) -> str | None:
        """Purge a run that has ended, and whose caller knows that; return its id. None: that cannot be done now."""
        if not self.journal.running:
            return None
        ended = sorted(self.ended(self._letters.keys() - self._purged))
        if not ended:
            return None
        run = rng.choice(ended)
        try:
            self._operator.purge(run)
        except DurableError:  # its outcome is not delivered yet
            return None
        self._purged.add(run)
        return run

    def waiting(self) -> list[Message]:
        """Return the messages of the queue that no worker has taken."""
        with self.broker.client() as client:
            return [json.loads(raw) for raw in client.lrange(QUEUE, 0, -1)]

    def taken(self) -> dict[str, Message]:
        """Return the messages that workers have taken and not acknowledged, by their tags."""
        with self.broker.client() as client:
            return {tag: json.loads(raw)[0] for tag, raw in client.hgetall("unacked").items()}

    def put(self, message: Message) -> None:
        """Put a message into the queue, with the marks of one that is delivered again."""
        message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
        with self.broker.client() as client:
            client.rpush(QUEUE, json.dumps(message))

    def remove(self, tag: str) -> None:
        """Let the broker forget a message that a worker has taken."""
        with self.broker.client() as client:
            client.hdel("unacked", tag)
            client.zrem("unacked_index", tag)

    def ended(self, runs: Collection[str]) -> set[str]:
        """Return which of these runs the result backend knows as ended."""
        names = list(runs)
        if not names:
            return set()
        with self.journal.client(self.terms.backend_db) as client:
            results = client.mget([f"{RESULT}{run}" for run in names])
        return {
            run for run, result in zip(names, results, strict=True) if result and json.loads(result)["status"] in TOLD
        }

    @cached_property
    def _operator(self) -> Runs:
        """Who looks after runs that are paused, and tidies up."""
        app = Celery("operator", broker=self.broker.url(WRITING_DB), set_as_current=False)
        app.conf.durable_redis_url = self.journal.url()
        return Runs(app)

    def end_pauses(self, runs: Collection[Run]) -> None:
        """Do with those of these runs that are paused what their programs say."""
        if not self.journal.running:
            return
        then = {
            run.id: operation["then"]
            for run in runs
            for operation in operations(run.program)
            if operation["do"] == "pause"
        }
        with suppress(DurableError):  # the journal does not answer, or the run has gone on
            for run in self._operator.list(state="PAUSED"):
                if then[run.id] == "retry":
                    effects.mend(str(self.effects), run.id)
                getattr(self._operator, then[run.id])(run.id)

    def has_begun(self, run: str) -> bool:
        with self.journal.client() as client:
            return any(client.scan_iter(match=f"durable:*:run:{run}", count=1000))

    def headings(self) -> dict[str, list[str]]:
        """Return where runs are in the index."""
        found: dict[str, list[str]] = {}
        with self.journal.client() as client:
            for key in client.scan_iter(match="durable:*:index:*", count=1000):
                for run in client.zrange(key, 0, -1):
                    found.setdefault(run, []).append(key.split(":index:")[1].partition(":")[0])
        return found

    def kept(self) -> dict[str, list[str]]:
        """Return the runs that stand among the leases, or among those that are due."""
        found: dict[str, list[str]] = {}
        with self.journal.client() as client:
            for kind in ("leases", "due"):
                for key in client.scan_iter(match=f"durable:*:{kind}", count=1000):
                    for run in client.zrange(key, 0, -1):
                        found.setdefault(run, []).append(kind)
        return found


def signal_all(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def _writer(url: str) -> Iterator[Celery]:
    """Yield an app that only sends; afterwards close its connections."""
    app = Celery("writer", broker=url, set_as_current=False)
    try:
        yield app
    finally:
        app.close()
        kombu.pools.reset()


UNREACHABLE = (redis.ConnectionError, redis.TimeoutError)
"""What a look at a server raises while it is down."""
