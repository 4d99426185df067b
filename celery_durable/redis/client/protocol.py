"""Commands in Redis' protocol. Parts that stay the same are packed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Any

_SHORT = 512
# To format a number takes longer than all the rest of packing a part.
_SIZES = [f"${size}\r\n" for size in range(_SHORT)]


def pack(*parts: Any) -> bytes:
    """A command in Redis' protocol."""
    return b"*%d\r\n" % len(parts) + pack_parts(parts)


def pack_parts(parts: Collection[Any]) -> bytes:
    """Some arguments of a command. If they stay the same, they are packed once."""
    texts = [
        part if type(part) is str else part.decode("latin-1") if type(part) is bytes else str(part) for part in parts
    ]
    sized = [_SIZES[len(text)] + text if len(text) < _SHORT else f"${len(text)}\r\n{text}" for text in texts]
    packed = "\r\n".join(sized)
    # Other texts have more bytes than characters.
    return packed.encode() + b"\r\n" if packed.isascii() else _pack_bytes(parts)


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
    """The names and values of a hash, like :func:`pack_parts`, but faster: every step does it."""
    text = "".join([f"${len(name)}\r\n{name}\r\n${len(value)}\r\n{value}\r\n" for name, value in fields.items()])
    return text.encode() if text.isascii() else _pack_bytes(chain.from_iterable(fields.items()))
