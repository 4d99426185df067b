"""The private names of asyncio: they tell what a task waits for, and for which function of asyncio a task is made."""

from __future__ import annotations

import asyncio
import sys
from types import CoroutineType, FrameType, GeneratorType
from typing import Any

from .lookup import Package, names_in

PYTHON = Package("Python", ">=3.10,<3.14", ".".join(map(str, sys.version_info[:3])))

_OTHERS = {
    "asyncio.locks": {"acquire", "wait", "_block"},
    "asyncio.queues": {"get", "put"},
    "asyncio.taskgroups": {"__aexit__", "_aexit"},
    "anyio._backends._asyncio": {"__aexit__"},
}
"""By module: functions in which a coroutine waits for other coroutines."""

_MAKERS = {"create_task", "ensure_future", "_ensure_future", "<setcomp>"}
"""Functions of asyncio that make a task for another function."""

_AS_COMPLETED = "_AsCompletedIterator"
"""The class in which ``as_completed()`` makes its tasks, since Python 3.13."""

_SHIELD = "_outer_done_callback"
"""The function inside of ``shield()`` that is called when its future has ended."""


def _has(kind: type, name: str) -> bool:
    # If the class is written in Python, and not in C, its constructor sets the attribute.
    code = getattr(kind.__init__, "__code__", None)  # type: ignore[misc]
    return hasattr(kind, name) or (code is not None and name in names_in(code))


for _kind, _name in ((asyncio.Task, "_fut_waiter"), (asyncio.Future, "_callbacks")):
    if not _has(_kind, _name):
        raise PYTHON.lacks(f"asyncio.{_kind.__name__}.{_name}")
for _module, _path in (
    ("asyncio.base_events", "BaseEventLoop.create_task"),
    ("asyncio.locks", "Condition.wait"),
    ("asyncio.locks", "Event.wait"),
    ("asyncio.locks", "Lock.acquire"),
    ("asyncio.locks", "Semaphore.acquire"),
    ("asyncio.queues", "Queue.get"),
    ("asyncio.queues", "Queue.put"),
    ("asyncio.tasks", "ensure_future"),
):
    PYTHON.look_up(_module, _path)
PYTHON.check_inside("asyncio.tasks", "_GatheringFuture.__init__", "_children")
PYTHON.check_inside("asyncio.tasks", "_wait", "fs", "return_when", "timeout")
PYTHON.check_inside("asyncio.tasks", "shield", "inner", _SHIELD)
PYTHON.check_inside("asyncio.tasks", "wait_for", "fut")
if sys.version_info >= (3, 11):
    PYTHON.look_up("asyncio.locks", "Barrier._block")
    PYTHON.look_up("asyncio.taskgroups", "TaskGroup.__aexit__")
if sys.version_info >= (3, 13):
    PYTHON.look_up("asyncio.tasks", _AS_COMPLETED)


# -- what a task waits for ---------------------------------------------------------------------------------------------


def tells_what_it_awaits(task: Any) -> bool:
    """Whether :func:`awaited_by` knows it: a task may be of another class than asyncio's."""
    return hasattr(task, "_fut_waiter")


def awaited_by(task: Any) -> Any:
    """The future that an asyncio task waits for; None while it does not wait."""
    return task._fut_waiter


def parts_of(future: Any) -> list[Any]:
    """The futures that this future of ``gather()`` or ``shield()`` waits for; for any other future, none."""
    parts = getattr(future, "_children", None)
    if parts is not None:
        return list(parts)
    return [] if (shielded := _shielded(future)) is None else [shielded]


def _shielded(future: Any) -> Any:
    callbacks: Any = getattr(future, "_callbacks", None)
    for callback, *_ in callbacks or ():
        if getattr(callback, "__qualname__", "") == f"shield.<locals>.{_SHIELD}":
            names = callback.__code__.co_freevars
            return callback.__closure__[names.index("inner")].cell_contents
    return None


def needed_by(coroutine: Any) -> list[Any] | None:
    """The futures that must all end before a coroutine goes on.

    The list is empty if it waits for other coroutines, in a lock or a queue. It is None if it waits for anything else,
    such as a clock.
    """
    frame = _innermost(coroutine)
    if frame is None:
        return None
    module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
    if module == "asyncio.tasks" and function == "wait_for":
        return [frame.f_locals.get("fut")]
    if module == "asyncio.tasks" and function == "_wait":
        return _needed_by_wait(frame.f_locals)
    return [] if function in _OTHERS.get(module or "", ()) else None


def _needed_by_wait(wait: Any) -> list[Any] | None:
    parts = [part for part in wait["fs"] if not part.done()]
    all_of_them = wait["return_when"] == asyncio.ALL_COMPLETED or len(parts) == len(wait["fs"])
    return parts if parts and all_of_them and wait["timeout"] is None else None


def _innermost(coroutine: Any) -> FrameType | None:
    """The innermost frame of a chain of coroutines that await each other."""
    while True:
        inner = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
        if not isinstance(inner, (CoroutineType, GeneratorType)):
            return getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        coroutine = inner


# -- for which function a task is made ---------------------------------------------------------------------------------


def how_it_is_made(depth: int) -> str:
    """The use of a task that a function of asyncio makes for the present coroutine: waited for, racing, or unknown.

    Args:
        depth: how many functions of this library are between that function and this one.
    """
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None and frame.f_code.co_name in _MAKERS and _is_asyncios(frame):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != "asyncio.tasks":
        return ""
    function = frame.f_code.co_name
    if function == "wait_for":
        # Before Python 3.12, it makes a task of the coroutine that it awaits.
        return "waited for"
    # These two put their tasks into a set, which has no order.
    return "racing" if function in {"as_completed", "wait"} or _is_as_completed(frame) else ""


def _is_asyncios(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("asyncio.")


def _is_as_completed(frame: FrameType) -> bool:
    return type(frame.f_locals.get("self")).__name__ == _AS_COMPLETED
