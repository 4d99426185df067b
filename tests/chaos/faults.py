"""What goes wrong. A fault is a generator: it does its harm, yields for how long, and heals it when it is resumed."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from tests.chaos.evidence import Struck
from tests.chaos.stage import COMPILER, UNREACHABLE, Stage, Worker, signal_all
from tests.servers import RedisServer


@dataclass(frozen=True)
class Harm:
    """What was done: to these processes, or to all of them; healed after so many seconds, or looked at again."""

    seconds: float = 0.0
    pids: frozenset[int] = frozenset()


Fault = Callable[[Stage, Random], Iterator[Harm]]


# -- processes ---------------------------------------------------------------------------------------------------------


def kill_child(stage: Stage, rng: Random) -> Iterator[Harm]:
    """SIGKILL of one process of a pool, as the kernel does when memory runs out."""
    if child := _child(stage, rng):
        signal_all([child], signal.SIGKILL)
        yield Harm(pids=frozenset([child]))


def kill_worker(stage: Stage, rng: Random) -> Iterator[Harm]:
    """SIGKILL of a worker with all its processes, as in a power cut; another one is started."""
    worker = rng.choice(stage.workers)
    pids = worker.pids()
    _end(stage, worker)
    yield Harm(pids=pids)


def freeze_child(stage: Stage, rng: Random) -> Iterator[Harm]:
    """SIGSTOP of one process for longer than its lease, then SIGCONT."""
    if child := _child(stage, rng):
        signal_all([child], signal.SIGSTOP)
        yield Harm(stage.terms.lease * rng.uniform(1.2, 3.5), frozenset([child]))
        signal_all([child], signal.SIGCONT)


def freeze_worker(stage: Stage, rng: Random) -> Iterator[Harm]:
    """The same with all processes of a worker, as when a virtual machine is paused."""
    pids = rng.choice(stage.workers).pids()
    signal_all(pids, signal.SIGSTOP)
    yield Harm(stage.terms.lease * rng.uniform(1.2, 3.5), pids)
    signal_all(pids, signal.SIGCONT)


def shut_down_worker(stage: Stage, rng: Random) -> Iterator[Harm]:
    """SIGTERM: the worker finishes what it does and exits; another one is started."""
    worker = rng.choice(stage.workers)
    stage.forget(worker)
    worker.process.send(signal.SIGTERM)
    stage.start_worker()
    give_up_at = time.monotonic() + 20
    while worker.running and time.monotonic() < give_up_at:
        yield Harm(0.5)
    # One that hangs, which is Celery's affair, dies in the end, and its runs go on elsewhere.
    pids = worker.pids()
    worker.process.kill()
    yield Harm(pids=pids or frozenset([0]))


def skew_clock(stage: Stage, rng: Random) -> Iterator[Harm]:
    """A worker dies, and the one that comes for it has a wall clock that is wrong by up to an hour."""
    worker = rng.choice(stage.workers)
    pids = worker.pids()
    _end(stage, worker, skew=rng.choice([-3600, -10, 5, 3600]))
    yield Harm(pids=pids)


# -- messages ----------------------------------------------------------------------------------------------------------


def duplicate_message(stage: Stage, rng: Random) -> Iterator[Harm]:
    """A message that a worker has taken is delivered once more."""
    if taken := stage.taken():
        stage.put(rng.choice(list(taken.values())))
        yield Harm()


def lose_message(stage: Stage, rng: Random) -> Iterator[Harm]:
    """The broker forgets the message of a run that has begun."""
    begun = {tag: message for tag, message in stage.taken().items() if stage.has_begun(message["headers"]["id"])}
    if begun:
        stage.remove(rng.choice(list(begun)))
        yield Harm()


def purge_run(stage: Stage, rng: Random) -> Iterator[Harm]:
    """Somebody purges a run that has ended, and a copy of its message comes late."""
    if run := stage.purge_one(rng):
        stage.repeat(run)
        yield Harm()


# -- Redis -------------------------------------------------------------------------------------------------------------


def kill_broker(stage: Stage, rng: Random) -> Iterator[Harm]:
    """SIGKILL of the broker's Redis, which is back with its data a little later."""
    return _outage(rng, stage.broker)


def kill_journal(stage: Stage, rng: Random) -> Iterator[Harm]:
    """The same with the Redis of the journals and results."""
    return _outage(rng, stage.journal)


def kill_both(stage: Stage, rng: Random) -> Iterator[Harm]:
    return _outage(rng, stage.broker, stage.journal)


def _outage(rng: Random, *servers: RedisServer) -> Iterator[Harm]:
    """For a moment, or for longer than a lease."""
    if all(server.running for server in servers):
        for server in servers:
            server.kill()
        yield Harm(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 4)]))
        for server in servers:
            server.start()


def cut_connection(stage: Stage, rng: Random) -> Iterator[Harm]:
    """Replies of the journals' Redis are lost with their connections: what they answer has been applied."""
    stage.proxy.lose_replies(rng.randint(1, 3))
    yield Harm(0.5)


def delay_request(stage: Stage, rng: Random) -> Iterator[Harm]:
    """What connections to the journals' Redis had sent when they were cut arrives when it was sent again long ago."""
    stage.proxy.hold_back(b"EVALSHA", rng.randint(1, 3))
    yield Harm(rng.uniform(0.1, stage.terms.lease * 2))
    stage.proxy.deliver_late()


WEIGHTS: dict[Fault, int] = {
    kill_child: 8,
    kill_worker: 3,
    freeze_child: 7,
    freeze_worker: 2,
    shut_down_worker: 1,
    skew_clock: 1,
    duplicate_message: 8,
    lose_message: 6,
    purge_run: 3,
    kill_broker: 1,
    kill_journal: 2,
    kill_both: 1,
    cut_connection: 6,
    delay_request: 6,
}
CUTTING = WEIGHTS.keys() - {duplicate_message, lose_message, purge_run, kill_broker}
"""The faults that may cut an attempt short; what happens to messages, or to their broker, must not."""
SILENCING: set[Fault] = {kill_journal, kill_both, cut_connection, delay_request}
"""Those that take what was sent to the journal, and not acknowledged."""


def possible() -> dict[Fault, int]:
    """Return the faults that this machine can do, with their weights."""
    return {fault: weight for fault, weight in WEIGHTS.items() if fault is not skew_clock or COMPILER}


# -- the injector ------------------------------------------------------------------------------------------------------


PAUSES = (0.1, 1.0)
"""Seconds between two faults."""
TICK = 0.05
"""Seconds between two looks at what is to strike or to heal."""


@dataclass
class _Open:
    """A fault that is not healed yet."""

    fault: Fault
    course: Iterator[Harm]
    began: float
    pids: frozenset[int]
    look_again_at: float


class Injector:
    """Lets faults strike at random moments, several at a time, and keeps the record of them."""

    def __init__(self, stage: Stage, rng: Random) -> None:
        self.struck: list[Struck] = []
        self._stage = stage
        self._rng = rng
        self._open: list[_Open] = []
        self._next = time.monotonic() + 1

    def tick(self) -> None:
        """Strike, if it is time to; heal what is due."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._rng.uniform(*PAUSES)
            faults = possible()
            [fault] = self._rng.choices(list(faults), list(faults.values()))
            self._strike(fault, Random(self._rng.random()))
        self._heal(lambda each: each.look_again_at <= time.monotonic())

    def heal_all(self) -> None:
        while self._open:
            self._heal(lambda _: True)
            self.rest()

    def rest(self) -> None:
        """Let time pass, and notice what happens by itself.

        The machine stands still, so that leases lapse; a worker ends, since kombu cannot always restore what it holds
        of a broker that goes away, and is started again, as supervisors do.
        """
        began = time.monotonic()
        time.sleep(TICK)
        if (now := time.monotonic()) - began > self._stage.terms.lease / 3:
            self.struck.append(Struck("a machine that stood still", began, now, cuts=True))
        for worker in [worker for worker in self._stage.workers if not worker.running]:
            _end(self._stage, worker)
            pids = frozenset([worker.process.pid])
            self.struck.append(Struck("a worker that ended by itself", began - 1, now, pids, cuts=True))

    def _strike(self, fault: Fault, rng: Random) -> None:
        began = time.monotonic()
        course = iter(fault(self._stage, rng))
        with suppress(*UNREACHABLE):  # one cannot tamper with the messages of a broker that is down
            if harm := next(course, None):
                self._open.append(_Open(fault, course, began, harm.pids, began + harm.seconds))

    def _heal(self, due: Callable[[_Open], bool]) -> None:
        for each in [each for each in self._open if due(each)]:
            if harm := next(each.course, None):
                each.pids |= harm.pids
                each.look_again_at = time.monotonic() + harm.seconds
            else:
                self._open.remove(each)
                kind = each.fault.__name__.replace("_", " ")
                cuts, silences = each.fault in CUTTING, each.fault in SILENCING
                self.struck.append(Struck(kind, each.began, time.monotonic(), each.pids, cuts, silences))


def _child(stage: Stage, rng: Random) -> int | None:
    """Return a process of a pool, one that executes a task if there is any."""
    children = [child for worker in stage.workers for child in worker.process.children()]
    candidates = [child for child in children if child in stage.executing] or children
    return rng.choice(candidates) if candidates else None


def _end(stage: Stage, worker: Worker, skew: int = 0) -> None:
    worker.process.kill()
    stage.forget(worker)
    stage.start_worker(skew)
