"""Looking out for a reply: for a moment, and seldom where replies are never there in time."""

import socket
from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from celery_durable.redis.client import spin_wait
from celery_durable.redis.client.spin_wait import SpinWait

IN_TIME, LATE = 9e-6, 1.0
"""Seconds that a look takes."""


class Sea:
    """What a spin wait sees, and the clock that goes on with each look."""

    def __init__(self, *looks: tuple[bool, float], then: tuple[bool, float]) -> None:
        self._looks: Iterator[tuple[bool, float]] = chain(looks, repeat(then))
        self.now = 0.0
        self.seen = 0

    def arrived(self, timeout: int) -> list[tuple[int, int]]:
        assert timeout == 0  # anything else would be a wait
        self.seen += 1
        something, duration = next(self._looks)
        self.now += duration
        return [(3, 1)] if something else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Sea]:
    """To be given the sea whose time it tells."""
    seas: list[Sea] = []
    monkeypatch.setattr(spin_wait, "perf_counter", lambda: seas[0].now)
    return seas


def looks(sea: Sea, times: int) -> list[int]:
    """In which of so many calls it has looked."""
    watch, looked = SpinWait(sea.arrived), []
    for number in range(1, times + 1):
        before = sea.seen
        watch.spin()
        if sea.seen > before:
            looked.append(number)
    return looked


def test_a_reply_that_is_quick_is_looked_out_for_each_time(clock: list[Sea]) -> None:
    clock.append(sea := Sea(then=(True, IN_TIME)))

    assert looks(sea, 20) == [*range(1, 21)]
    assert sea.seen == 20


def test_it_looks_again_until_the_moment_is_over(clock: list[Sea]) -> None:
    clock.append(sea := Sea(then=(False, IN_TIME)))

    assert looks(sea, 1) == [1]
    assert sea.seen == 6  # in 50 us


@pytest.mark.parametrize("arrives", [False, True], ids=["not yet", "late, as others had the core"])
def test_replies_that_are_late_are_looked_out_for_ever_more_seldom(clock: list[Sea], arrives: bool) -> None:
    clock.append(sea := Sea(then=(arrives, LATE)))

    looked = looks(sea, 6000)

    # After each look in vain 1, 3, 7, ... are passed over; never more than 1,000.
    assert looked == [1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 2024, 3025, 4026, 5027]


def test_one_reply_in_time_makes_up_for_those_that_were_late(clock: list[Sea]) -> None:
    late, in_time = (False, LATE), (True, IN_TIME)
    clock.append(sea := Sea(late, late, late, in_time, late, then=in_time))

    assert looks(sea, 20) == [1, 3, 7, 15, 16, 18, 19, 20]


def test_only_a_thread_of_its_own_looks_out() -> None:
    """Greenlets share one: the others would have to wait."""

    class Green(socket.socket):
        """As those of gevent and eventlet, of another module."""

    ours, theirs = socket.socketpair()
    with ours, theirs, Green() as green:
        assert SpinWait.over(green) is None
        watch = SpinWait.over(ours)
        assert watch is not None
        theirs.send(b"+OK\r\n")
        watch.spin()  # returns, as something has arrived
        assert ours.recv(5) == b"+OK\r\n"
