"""An exception as facts in the journal, and the facts as an exception again.

A class is looked up among those that the process has loaded. None is imported because a journal names it.
"""

from __future__ import annotations

import builtins
import json
import sys
import traceback
from types import TracebackType
from typing import Any

from celery_durable.exceptions import DurableError, TerminalError, as_text

from . import codec

# Python 3.10 has no groups.
_GROUPS: tuple[type[BaseException], ...] = tuple(
    kind for kind in (getattr(builtins, "BaseExceptionGroup", None),) if kind is not None
)
_LONGEST_TEXT = 20_000


class RecordedTraceback(Exception):
    """The cause of an error that was read from the journal: its traceback, as text, as Celery shows remote ones."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def describe(error: BaseException, *, with_args: bool = True, with_metadata: bool = True) -> dict[str, Any]:
    """What the journal keeps of an exception.

    Raises:
        codec.NotEncodable: JSON cannot keep the arguments or the metadata of a ``TerminalError``.
    """
    kind = type(error)
    facts: dict[str, Any] = {"type": kind.__qualname__, "module": kind.__module__, "message": text_of(error)}
    if with_args:
        try:
            facts["args"] = json.loads(codec.encode(list(error.args)).text)
        except TypeError:
            pass  # user code has put something else there
        except codec.NotEncodable:
            if isinstance(error, TerminalError):
                raise
    if isinstance(error, TerminalError):
        metadata = json.loads(codec.encode(error.metadata).text) if with_metadata else None
        facts |= {"status_code": error.status_code, "metadata": metadata, "error_type": error.error_type}
    facts["traceback"] = traceback_of(error)
    return facts


def text_of(error: BaseException) -> str:
    """``str(error)``, shortened if it is very long. A ``__str__`` of the user's that fails does no harm."""
    return as_text(error)[:_LONGEST_TEXT]


def shown(error: BaseException) -> str:
    """An error for the log."""
    return f"{type(error).__qualname__}: {text_of(error)}"


def traceback_of(error: BaseException) -> str:
    """The end of the traceback of *error* as text."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        text = "".join(traceback.format_tb(error.__traceback__)) + text_of(error)
    return text[-_LONGEST_TEXT:]


def located(error: BaseException, brought_by: BaseException) -> BaseException:
    """*error* with the traceback that it would have if it had left the body itself, and not *brought_by* another."""
    inner, outer = error.__traceback__, brought_by.__traceback__
    if inner is None:
        return error.with_traceback(outer)
    path = []
    while outer is not None and outer.tb_frame is not inner.tb_frame:
        path.append(outer)
        outer = outer.tb_next
    if outer is not None:
        for level in reversed(path):
            inner = TracebackType(inner, level.tb_frame, level.tb_lasti, level.tb_lineno)
    return error.with_traceback(inner)


def failure_of(facts: dict[str, Any]) -> Exception:
    """The exception that *facts* describe, with its recorded traceback as its cause."""
    error = _failure_of(facts)
    if text := facts.get("traceback"):
        error.__cause__ = RecordedTraceback(text)
    return error


def _failure_of(facts: dict[str, Any]) -> Exception:
    """The exception that *facts* describe.

    It has its own class if the process knows that class and can make the exception again from its arguments. If not, a
    terminal failure is a ``TerminalError``, and any other gets a new class of that name.

    Raises:
        Exception: :func:`describe` gives no such facts.
    """
    kind = known_class(facts.get("module", ""), facts["type"])
    if kind is not None and "args" in facts:
        rebuilt = _rebuild(kind, facts)
        if rebuilt is not None:
            if isinstance(rebuilt, TerminalError):
                rebuilt.error_type = facts.get("error_type")
            return rebuilt
    if "status_code" in facts:
        metadata = codec.decode(json.dumps(facts["metadata"]), {})
        terminal = TerminalError(facts["message"], facts["status_code"], metadata)
        terminal.error_type = facts.get("error_type") or facts["type"]
        return terminal
    name = facts["type"].rpartition(".")[2]
    namesake: type[Exception] = type(name, (Exception,), {"__module__": facts.get("module")})
    return namesake(facts["message"])


def leading(error: BaseException) -> BaseException:
    """The exception that decides in a group: a ``TerminalError``, or the only one there is; else the group itself."""
    leaves = [error]
    for leaf in leaves:
        leaves += getattr(leaf, "exceptions", ()) if isinstance(leaf, _GROUPS) else ()
    leaves = [leaf for leaf in leaves if not isinstance(leaf, _GROUPS)]
    terminal = [leaf for leaf in leaves if isinstance(leaf, TerminalError)]
    return terminal[0] if terminal else leaves[0] if len(leaves) == 1 else error


def rebuilds(error: BaseException) -> bool:
    """Whether another process that knows the class of *error* can make it again from its arguments."""
    kind = type(error)
    if known_class(kind.__module__, kind.__qualname__) is not kind:
        return False
    try:
        return kind(*error.args).args == error.args
    except Exception:
        return False


def portable(error: BaseException) -> BaseException:
    """*error*, or another one that replaces it, if it cannot leave this process.

    A ``TerminalError`` replaces an error of a subclass that other processes cannot make again. An ``Exception`` of the
    same name replaces an error that is none (``CancelledError``, ``gevent.Timeout``): Celery would end the worker.
    """
    if not isinstance(error, Exception):
        return _failure_of(describe(error)).with_traceback(error.__traceback__)
    if not isinstance(error, TerminalError) or rebuilds(error):
        return error
    stand_in = TerminalError(error.message, error.status_code, error.metadata)
    stand_in.error_type = type(error).__qualname__
    stand_in.__cause__ = error.__cause__
    return stand_in.with_traceback(error.__traceback__)


def known_class(module: str, qualname: str) -> type[Exception] | None:
    """The exception class of this name, if this process has loaded it; else None."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # Not getattr(): a module may import what it is asked for.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _rebuild(kind: type[Exception], facts: dict[str, Any]) -> Exception | None:
    try:
        args = codec.decode(json.dumps(facts["args"]), {})
        error = kind(*args)
    except Exception:
        return None
    same = list(error.args) == list(args) and text_of(error) == facts["message"]
    return error if same or not issubclass(kind, (TerminalError, DurableError)) else None
