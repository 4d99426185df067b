"""What became of each order, and what it took."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Row:
    """One order."""

    order: str
    attempts: int
    steps_executed: int
    steps_replayed: int
    charges: int


HEADINGS = [field.name.replace("_", " ") for field in fields(Row)]


def render(rows: list[Row]) -> str:
    """The rows under their headings, and the sums."""
    columns = list(zip(*[astuple(row) for row in rows], strict=True))
    sums = ("total", *(sum(column) for column in columns[1:]))
    rule = "-" * len(_line(HEADINGS))
    return "\n".join([_line(HEADINGS), rule, *(_line(astuple(row)) for row in rows), rule, _line(sums)])


def _line(cells: Iterable[object]) -> str:
    first, *numbers = cells
    widths = [len(heading) for heading in HEADINGS[1:]]
    return "  ".join([f"{first:<6}", *(f"{cell:>{width}}" for cell, width in zip(numbers, widths, strict=True))])
