"""Places in program order, by which the operations of an attempt are known again.

The operations of a body are numbered as it calls them. Coroutines that run beside it, as asyncio tasks of their own,
are branches: numbered as they begin to use the context, and each counting for itself, since which of them is quicker
must not matter on replay.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, NamedTuple

from .exceptions import JournalUnreadableError


class _Branch:
    __slots__ = ("branches", "operations", "path", "trunk")

    def __init__(self, path: str, trunk: _Branch | None = None) -> None:
        self.path = path
        self.trunk = trunk
        """None of a trunk itself: what an attempt leaves is not to wait for the garbage collector."""
        self.operations = 0
        self.branches = 0


# That of the asyncio task, or of the one that made it.
_present: ContextVar[_Branch | None] = ContextVar("celery_durable_branch", default=None)


class Places:
    """The places of one attempt: ``3``, or ``2.3`` for the third operation of the second branch."""

    def __init__(self) -> None:
        self._trunk = _Branch("")
        self._trunks_task: Any = None
        self._branches: dict[Any, _Branch] = {}

    def begin_in_task(self) -> None:
        """The body is an asyncio task: this one."""
        self._trunks_task = asyncio.current_task()

    def next(self) -> str:
        """The place of the operation that is being called."""
        branch = self._branch()
        branch.operations += 1
        return f"{branch.path}{branch.operations}"

    def here(self) -> Here:
        """Where the code is that asks."""
        branch = self._branch()
        return Here(branch.path, branch.operations, branch.branches)

    def begun(self, place: str) -> dict[str, list[int]]:
        """How many operations, and how many branches, the body and each branch have begun that *place* is in."""
        around = [each for each in (self._trunk, *self._branches.values()) if place.startswith(each.path)]
        return {each.path: [each.operations, each.branches] for each in around}

    @property
    def path(self) -> str:
        """What the places of this branch begin with; empty in the body."""
        return self._branch().path

    def _branch(self) -> _Branch:
        if self._trunks_task is None or (task := asyncio.current_task()) is self._trunks_task:
            return self._trunk
        if task not in self._branches:
            outer = _present.get()
            parent = outer if outer is not None and outer.trunk is self._trunk else self._trunk
            parent.branches += 1
            branch = self._branches[task] = _Branch(f"{parent.path}{parent.branches}.", self._trunk)
            _present.set(branch)
        return self._branches[task]


class Here(NamedTuple):
    """Where a body, or a branch, is: between two of its operations."""

    path: str
    operations: int
    branches: int

    @property
    def next(self) -> str:
        """The place of the operation that comes next."""
        return f"{self.path}{self.operations + 1}"

    def is_before(self, place: str) -> bool:
        """Whether *place* is that of an operation of this branch, or of one that it began, and comes later."""
        if not place.startswith(self.path):
            return False
        number, *deeper = place[len(self.path) :].split(".")
        return int(number) > (self.branches if deeper else self.operations)


def path_of(place: str) -> str:
    """What the places of its branch begin with."""
    return place[: place.rfind(".") + 1]


def in_order(place: str) -> tuple[int, ...]:
    """A key to sort places by.

    Raises:
        JournalUnreadableError: it is none, so that its entry belongs to no step.
    """
    try:
        return tuple(map(int, place.split(".")))
    except ValueError:
        raise JournalUnreadableError(
            f"entry step:{place} is at no place in program order; delete it, or send the task under a new id"
        ) from None
