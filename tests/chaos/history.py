"""Every change of every journal, in order, as Redis wrote it down itself: its append-only file, read as a history.

A script that writes more than once is one transaction there, so what one call of the library changed is one `Write`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Write:
    """What one script, or one command, changed of one key.

    Attributes:
        number: Its place in the history.
        fields: What was written, a plain value under the name "".
        gone: The fields that were removed.
        act: That of the first write which became true at the same moment.
    """

    number: int
    db: int
    key: str
    fields: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    act: int = -1

    def __post_init__(self) -> None:
        if self.act < 0:
            self.act = self.number

    def __str__(self) -> str:
        told = [f"{name}={value[:160]}" for name, value in self.fields.items()]
        return f"#{self.number} " + " ".join([*told, *(f"-{name}" for name in self.gone)])


def read(directory: Path) -> list[Write]:
    """Return what the server with this directory has written, oldest first."""
    files = [*directory.glob("appendonlydir/*.incr.aof"), *directory.glob("appendonly.aof")]
    assert len(files) == 1, f"the history is in one file, since nothing rewrites it, but there are {files}"
    return list(_writes(_commands(files[0].read_bytes())))


def _writes(commands: Iterator[list[str]]) -> Iterator[Write]:
    """Group commands by transaction and key."""
    number, db, inside = 0, 0, False
    latest: dict[tuple[str, str], str] = {}
    changed: dict[str, Write] = {}
    for verb, *arguments in commands:
        match verb.upper(), arguments:
            case "SELECT", [index]:
                db = int(index)
            case "MULTI", _:
                inside = True
            case "EXEC", _:
                inside = False
            case "HSET" | "HMSET", [key, *pairs]:
                fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
                latest |= {(key, name): value for name, value in fields.items()}
                _write(changed, number, db, key).fields |= fields
            case "HINCRBY", [key, name, step]:
                latest[key, name] = str(int(latest.get((key, name), 0)) + int(step))
                _write(changed, number, db, key).fields[name] = latest[key, name]
            case "HDEL", [key, *names]:
                _write(changed, number, db, key).gone |= set(names)
            case "SET", [key, value, *_]:
                _write(changed, number, db, key).fields[""] = value
        if changed and not inside:
            yield from changed.values()
            number, changed = number + len(changed), {}


def _write(changed: dict[str, Write], number: int, db: int, key: str) -> Write:
    return changed.setdefault(key, Write(number + len(changed), db, key, act=number))


def _commands(text: bytes) -> Iterator[list[str]]:
    """Read commands in Redis' protocol, up to the end or to where the last one was torn."""
    position = 0

    def line() -> bytes:
        nonlocal position
        end = text.index(b"\r\n", position)
        found, position = text[position:end], end + 2
        return found

    while position < len(text):
        try:
            head = line()
            if head.startswith(b"#"):
                continue
            words = []
            for _ in range(int(head[1:])):
                end = int(line()[1:]) + position
                words.append(text[position:end].decode(errors="replace"))
                position = text.index(b"\r\n", end) + 2
        except ValueError:
            return
        yield words
