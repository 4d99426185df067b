"""Commands in Redis' protocol. Parts that stay the same are packed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

_pack_command: Callable[[tuple[Any, ...]], bytes] | None
try:
    from hiredis import pack_command as _pack_command
except ImportError:  # where it cannot be installed
    _pack_command = None


def pack(*parts: Any) -> bytes:
    """A command in Redis' protocol."""
    return b"*%d\r\n" % len(parts) + pack_parts(parts)


def pack_parts(parts: tuple[Any, ...]) -> bytes:
    """Some arguments of a command: texts, bytes and numbers. If they stay the same, they are packed once."""
    if _pack_command is None:
        return _pack_bytes(parts)
    packed = _pack_command(parts)
    return packed[packed.index(b"\n") + 1 :]  # without the number of arguments, because others stand before these


def pack_number(number: int) -> bytes:
    """One argument that is a number."""
    text = b"%d" % number
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _pack_bytes(parts: Iterable[Any]) -> bytes:
    packed: list[bytes] = []
    for part in parts:
        raw = part if type(part) is bytes else str(part).encode()
        packed += (b"$%d\r\n" % len(raw), raw, b"\r\n")
    return b"".join(packed)


def pack_pairs(fields: Mapping[str, str]) -> bytes:
    """The names and values of a hash, like :func:`pack_parts`, but for a few of them faster: every step does it."""
    text = "".join([f"${len(name)}\r\n{name}\r\n${len(value)}\r\n{value}\r\n" for name, value in fields.items()])
    # Other texts have more bytes than characters.
    return text.encode() if text.isascii() else _pack_bytes(chain.from_iterable(fields.items()))
