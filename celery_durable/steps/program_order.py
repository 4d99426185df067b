"""The program order of an attempt: each operation has a position in it, and a replay knows it again by that.

The operations of a body are numbered as it calls them. Coroutines that run beside it, as asyncio tasks of their own,
are branches, and each branch counts for itself. Branches are numbered in the order in which their parent makes their
asyncio tasks: what a coroutine awaits first, and which of them is quicker, must not matter on replay. If a parent makes
tasks in no fixed order, ``ctx.branch`` gives each branch a name.

``ctx.patched`` is of this module, too: a change of the code holds from a position on (:class:`Patches`).
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple

from celery_durable.exceptions import InvalidStepError
from celery_durable.journal.positions import NAMED, named_part, path_of

_NO_ORDER = (
    "the context was used in an asyncio task that was made in no fixed order (in a callback, by as_completed(), by "
    "another task factory): begin such coroutines with gather() or create_task() in the body, or write "
    "`with ctx.branch(key):` around what this one does, with a key of its own"
)
_RACE = (
    "an operation was called when some of what as_completed() waits for had ended and some had not: which is first "
    "differs from attempt to attempt. Use gather(), or write `with ctx.branch(key):`, with a key of its own, around "
    "what is done with a result"
)


_ANOTHER_THREAD = "the context of an async task was used in another thread: call it in the coroutines of the task"


class _Branch:
    __slots__ = ("branches", "names", "operations", "path", "rivals", "trunk")

    def __init__(self, path: str, trunk: _Branch | None = None) -> None:
        self.path = path
        self.trunk = trunk
        """None in the trunk itself: a cycle would keep the attempt until the garbage collector runs."""
        self.operations = 0
        self.branches = 0
        self.names: set[str] = set()
        self.rivals: list[tuple[Any, Strand | None]] = []
        """The tasks that it has given to ``as_completed()``, and their strands. A task that is a step has none."""

    def named(self, key: str) -> _Branch:
        part = named_part(key)
        if part in self.names:
            raise InvalidStepError(
                f"two branches of one parent are named {key!r}: give each `with ctx.branch(key):` a key of its own"
            )
        self.names.add(part)
        return _Branch(f"{self.path}{part}.", self.trunk or self)

    def check_race(self) -> None:
        """Refuse an operation that is called because one of several tasks was quicker than the others."""
        self.rivals = [rival for rival in self.rivals if not rival[0].done()]
        if any(strand is None or strand.used for _, strand in self.rivals):
            raise InvalidStepError(_RACE)


# The branch of this asyncio task, or of the task that made it. Only a numbering by first use needs it.
_present: ContextVar[_Branch | None] = ContextVar("celery_durable_branch", default=None)


class Strand:
    """Where one coroutine is: in a branch of its own, or in one that it has named."""

    __slots__ = ("branch", "own", "parent", "used")

    def __init__(self, parent: _Branch | None, own: _Branch | None = None) -> None:
        self.parent = parent
        self.own = own
        """None if its task was made in no fixed order."""
        self.branch: _Branch | None = None
        """None as long as it has not used its context."""
        self.used = False


class Strands:
    """Which strand each asyncio task of an attempt follows.

    Args:
        root: the branch of the body.
        by_use: whether branches are numbered in the order in which they first use the context, as version 0.1.0 did.
            It is called once, when there is a branch.
    """

    def __init__(self, root: _Branch, by_use: Callable[[], bool]) -> None:
        self._root = root
        self.by_task: dict[Any, Strand] = {}
        self._ask_by_use = by_use
        self._by_use: bool | None = None

    @property
    def by_use(self) -> bool:
        if self._by_use is None:
            self._by_use = self._ask_by_use()
        return self._by_use

    def branch_off(self, maker: Any, *, in_order: bool) -> Strand:
        """The strand of an asyncio task that *maker* is about to make; *in_order*: it does so in a fixed order."""
        parent = self._branch_of(maker)
        if parent is None or not in_order:
            return Strand(parent or self._root)
        parent.branches += 1
        return Strand(parent, _Branch(f"{parent.path}{parent.branches}.", self._root))

    def strand_of(self, task: Any) -> Strand | None:
        """The strand of an asyncio task; None if the task was not made in this attempt."""
        return self.by_task.get(task)

    def enter(self, task: Any, strand: Strand) -> None:
        """This asyncio task follows that strand."""
        self.by_task[task] = strand

    def leave(self, task: Any) -> None:
        """The asyncio task has ended."""
        self.by_task.pop(task, None)

    def race(self, maker: Any, task: Any, strand: Strand | None) -> None:
        """*maker* gives this task to ``as_completed()``, to learn which of several ends first."""
        branch = self._branch_of(maker)
        if branch is not None:
            branch.rivals.append((task, strand))

    def _branch_of(self, task: Any) -> _Branch | None:
        strand = self.strand_of(task)
        return None if strand is None else strand.branch or strand.own


class ProgramOrder:
    """The positions of one attempt: ``3``, or ``2.3`` for the third operation of the second branch.

    Args:
        by_use: see :class:`Strands`.
    """

    def __init__(self, by_use: Callable[[], bool] = lambda: False) -> None:
        self._root = _Branch("")
        self._trunk = Strand(None, self._root)
        self._trunk.branch = self._root
        self._used: dict[str, _Branch] = {"": self._root}
        """Branches that have taken a position, by their paths."""
        self._by_use = by_use
        self._in_task = False
        """The body is an asyncio task."""
        self.patches = Patches()
        self.branched = False
        """A branch that was numbered when it was made, or was named, has been used."""

    @cached_property
    def strands(self) -> Strands:
        """The strands of the asyncio tasks; a ``def`` body has none."""
        return Strands(self._root, self._by_use)

    def begin_in_task(self) -> None:
        """The body is an asyncio task: this one."""
        self._in_task = True
        self.strands.enter(current_task(), self._trunk)

    def next(self) -> str:
        """The position of the operation that is being called.

        Raises:
            InvalidStepError: it is called in no fixed order.
        """
        branch = self._branch() if self._in_task else self._root  # a def body has no other branch, and no races
        branch.operations += 1
        return f"{branch.path}{branch.operations}"

    def has_reached(self, position: str) -> bool:
        """Whether the code has called the operation that has this position."""
        path = path_of(position)
        branch = self._used.get(path)
        return branch is not None and branch.operations >= int(position[len(path) :])

    def here(self) -> Here:
        """The point that the calling code has reached."""
        branch = self._branch()
        return Here(branch.path, branch.operations, branch.branches, frozenset(branch.names))

    def begun(self, position: str) -> dict[str, list[int | str]]:
        """For each branch around a position: how many operations and branches it has begun, and their names."""
        around = [branch for path, branch in self._used.items() if position.startswith(path)]
        return {each.path: [each.operations, each.branches, *sorted(each.names)] for each in around}

    @property
    def path(self) -> str:
        """What the positions of this branch begin with; empty in the body.

        Raises:
            InvalidStepError: the branch has no fixed order.
        """
        return self._branch().path

    def name(self, key: str) -> Callable[[], None]:
        """What this coroutine does from now on belongs to the branch with this name. Returns a function that ends this.

        Raises:
            InvalidStepError: the key is not valid, or its parent has used it before.
        """
        _check_key(key)
        strand = self._strand()
        outer = strand.branch
        parent = outer or strand.parent
        assert parent is not None  # noqa: S101
        strand.branch = self._entered(parent.named(key))
        strand.used = True
        self.branched = not self.strands.by_use

        def leave() -> None:
            strand.branch = outer

        return leave

    # -- where this code is

    def _branch(self) -> _Branch:
        strand = self._strand() if self._in_task else self._trunk
        branch = strand.branch
        if branch is None:
            branch = self._begun(strand)
        if branch.rivals:
            branch.check_race()
        return branch

    def _strand(self) -> Strand:
        try:
            task = current_task()
        except RuntimeError:  # in a thread without a loop
            raise InvalidStepError(_ANOTHER_THREAD) from None
        strands = self.strands
        try:
            return strands.by_task[task]
        except KeyError:
            strand = strands.by_task[task] = self._at_first_use() if strands.by_use else Strand(self._root)
            return strand

    def _begun(self, strand: Strand) -> _Branch:
        """The branch of a coroutine that uses its context for the first time."""
        if strand.own is None:
            raise InvalidStepError(_NO_ORDER)
        strand.branch = self._entered(strand.own)
        strand.used = self.branched = True
        return strand.own

    def _at_first_use(self) -> Strand:
        outer = _present.get()
        parent = outer if outer is not None and outer.trunk is self._root else self._root
        parent.branches += 1
        branch = self._entered(_Branch(f"{parent.path}{parent.branches}.", self._root))
        strand = Strand(parent, branch)
        strand.branch = branch
        _present.set(branch)
        return strand

    def _entered(self, branch: _Branch) -> _Branch:
        self._used[branch.path] = branch
        return branch


class Here(NamedTuple):
    """A point in program order: between two operations of the body, or of a branch."""

    path: str
    operations: int
    branches: int
    names: frozenset[str]

    @property
    def next(self) -> str:
        """The position of the operation that comes next."""
        return f"{self.path}{self.operations + 1}"

    def is_before(self, position: str) -> bool:
        """Whether this position comes later, in this branch or in a branch that begins in it."""
        if not position.startswith(self.path):
            return False
        part, *deeper = position[len(self.path) :].split(".")
        if part.startswith(NAMED):
            return part not in self.names
        return int(part) > (self.branches if deeper else self.operations)


# -- changes of the code ----------------------------------------------------------------------------------------------


class _Patched(NamedTuple):
    """A change that a run has taken on, and that is not recorded yet."""

    here: Here
    patch: str


class Patches:
    """The changes of the code that a run takes on (``ctx.patched``), until they are recorded."""

    __slots__ = ("pending", "taken")

    def __init__(self) -> None:
        self.pending: list[_Patched] = []
        self.taken: dict[str, tuple[str, ...]] = {}
        """The changes that stand before a position; only positions that have some."""

    def add(self, here: Here, patch: str) -> None:
        self.pending.append(_Patched(here, patch))

    def take(self, position: str) -> None:
        """Note which changes stand before a position that an operation takes."""
        before = tuple(dict.fromkeys(one.patch for one in self.pending if one.here.is_before(position)))
        if before:
            self.taken[position] = before

    def are_recorded(self, position: str) -> None:
        """The entry at this position has them. Who finds a later entry of its branch finds this one, too."""
        if self.taken.pop(position, None):
            path = path_of(position)
            self.pending = [one for one in self.pending if one.here.path != path or not one.here.is_before(position)]


# -- names of branches -------------------------------------------------------------------------------------------------


def _check_key(key: str) -> None:
    try:
        if isinstance(key, str) and key.encode():  # type: ignore[redundant-expr]
            return
    except UnicodeEncodeError:
        pass
    raise InvalidStepError(f"the key of ctx.branch must be a text that is not empty and that UTF-8 has, got {key!r}")
