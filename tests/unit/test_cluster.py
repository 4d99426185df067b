"""What the nodes of a Cluster say of their slots."""

import pytest

from celery_durable.redis.client.errors import TransientError
from celery_durable.redis.client.slots import Node, Slots
from celery_durable.redis.client.slots import _range as read_range

ASKED = Node("where.it.was.found", 7000)


def slots_of(*answer: list[object]) -> Slots:
    """Return the slots of a Cluster whose nodes answer this."""

    def make_connection() -> None:
        raise AssertionError("nothing is connected")

    slots = Slots(make_connection, [ASKED])
    slots._ask = lambda node: [read_range(*one, asked=node) for one in answer]  # noqa: SLF001
    return slots


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_that_does_not_say_its_address_is_where_it_was_found(host: bytes | None) -> None:
    slots = slots_of([0, 16383, [host, 7001, b"id"], [b"10.0.0.2", 7002, b"id"]])

    assert slots.master(5, since=0) == Node("where.it.was.found", 7001)


def test_a_slot_is_at_the_master_of_its_range() -> None:
    slots = slots_of([0, 99, [b"one", 1, b""]], [100, 100, [b"two", 2, b""]], [101, 16383, [b"three", 3, b""]])

    assert [slots.master(slot, since=0).host for slot in (0, 99, 100, 101, 16383)] == [
        "one", "one", "two", "three", "three",
    ]  # fmt: skip


def test_a_slot_that_nobody_has_may_have_somebody_later() -> None:
    slots = slots_of([0, 99, [b"one", 1, b""]])

    with pytest.raises(TransientError, match="no node of the Cluster has slot 100"):
        slots.master(100, since=0)


def test_a_redirection_holds_until_the_nodes_are_asked_again() -> None:
    slots = slots_of([0, 16383, [b"one", 1, b""]])
    slots.master(5, since=0)
    slots.moved(5, Node("two", 2))

    assert slots.known_master(5) == Node("two", 2)
    assert slots.known_master(6) == Node("one", 1)
    assert slots.master(5, since=float("inf")) == Node("one", 1)
