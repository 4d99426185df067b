"""Which code of a task this is: a fingerprint of its function, for users who give their builds no names.

Every process that has this code, and the same version of Python, computes the same fingerprint, and code that does
something else has another one. Line numbers, file names and docstrings have no part in it, because they say nothing of
what the code does.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any

_LENGTH = 12


def of(run: Callable[..., Any]) -> str:
    """The fingerprint of the function of a task. What decorates the function has no part in it."""
    code = _code_of(run)
    # A function that is written in C shows only its name.
    text = getattr(run, "__qualname__", repr(type(run))) if code is None else "\n".join(_lines(code))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_LENGTH]


def _code_of(run: Any) -> CodeType | None:
    found = inspect.unwrap(run)
    while isinstance(found, partial):
        found = inspect.unwrap(found.func)
    for function in (found, getattr(found, "__func__", None), type(found).__call__ if callable(found) else None):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None


def _lines(code: CodeType) -> Iterator[str]:
    """What the code does, as text. Operands are shown as what they stand for: a docstring changes their numbers."""
    yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags & _MEANT}"
    yield " ".join(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    for instruction in dis.get_instructions(code):
        yield f"{instruction.opname} {_text(instruction.argval)}"
    yield getattr(code, "co_exceptiontable", b"").hex()  # since Python 3.11 it stands beside the instructions


_MEANT = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)


def _text(value: Any) -> str:
    """A constant or a name as text that is the same in every process, which the order of a set is not."""
    match value:
        case CodeType():
            return "\n".join([f"{{ {value.co_name}", *_lines(value), "}"])
        case tuple():
            return f"({', '.join(map(_text, value))})"
        case frozenset():
            return f"{{{', '.join(sorted(map(_text, value)))}}}"
        case slice():  # it is a constant since Python 3.14
            return f"slice{_text((value.start, value.stop, value.step))}"
    return f"{type(value).__name__} {value!r}"
