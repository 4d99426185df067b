"""The scripts of the journal: their texts, and the commands that run them.

Every script may be applied twice: a command whose reply was lost is sent again.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple

from celery_durable.journal.port import LONGEST_READ

from .protocol import pack_number, pack_parts

_LONGEST_REPLY = LONGEST_READ + 1
"""Nobody waits longer than so many seconds for a reply: the connection is given up before."""

_INCLUDE = r"(?m)^ *--include (\w+)\n"


_LUA = Path(__file__).parents[1] / "lua"


def _lua(name: str) -> str:
    return (_LUA / f"{name}.lua").read_text("utf-8")


class Script:
    """One of the Lua files in the folder ``lua``, called by its digest."""

    __slots__ = ("call", "text")

    def __init__(self, name: str) -> None:
        self.text = re.sub(_INCLUDE, lambda line: _lua(f"parts/{line[1]}"), _lua(name))
        sha = sha1(self.text.encode()).hexdigest()  # noqa: S324  the name that Redis gives it
        self.call = pack_parts(("EVALSHA", sha))


@cache
def script(name: str) -> Script:
    return Script(name)


@cache
def all_scripts() -> tuple[Script, ...]:
    names = sorted(path.stem for path in _LUA.glob("*.lua"))
    return tuple(script(name) for name in names)


class Dated(NamedTuple):
    """A command that no fence guards. Redis carries it out only while somebody may wait for its reply.

    If it arrives later, it does nothing: see ``lua/parts/in_time.lua``.
    """

    command: bytes
    """The command without its last argument, which says until when it holds."""

    def packed(self, now: float) -> bytes:
        """The command as it is sent *now*, in milliseconds of Redis' clock."""
        return self.command + pack_number(int(now + _LONGEST_REPLY * 1000))


def call(script_name: str, keys: tuple[str | bytes, ...], *args: Any, to_come: int = 0) -> bytes:
    """The command that runs a script; so many arguments are *to_come*."""
    parts = (len(keys), *keys, *args)
    return b"*%d\r\n" % (2 + len(parts) + to_come) + script(script_name).call + pack_parts(parts)


def dated_call(script_name: str, keys: tuple[str | bytes, ...], *args: Any) -> Dated:
    """The same for a script that includes ``in_time``."""
    return Dated(call(script_name, keys, *args, to_come=1))
