"""What was measured: rows with their targets, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.sample import interval


@dataclass(frozen=True)
class Row:
    """One number; `at_most` is its target, if it has one."""

    group: str
    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    interval: tuple[float, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """More about it, for the JSON."""

    @classmethod
    def of(cls, group: str, what: str, values: Sequence[float], unit: str = "x", **more: Any) -> "Row":
        """The median of repeated measurements, with its interval."""
        facts = {"rounds": len(values)} | more.pop("facts", {})
        return cls(group, what, median(values), unit, interval=interval(values), facts=facts, **more)

    @property
    def verdict(self) -> str:
        """How the value stands to its target."""
        if self.at_most is None:
            return ""
        return "ok" if self.value <= self.at_most else "MISSED"


def as_json(row: Row) -> dict[str, Any]:
    """The row as plain data."""
    return asdict(row) | {"verdict": row.verdict}


_HEADINGS = ("what", "measured", "95% interval", "target", "")
_WIDTHS = (74, 10, 17, 8, 6)


def heading() -> str:
    """The first lines of the table."""
    return f"{_line(_HEADINGS)}\n{'-' * len(_line(_HEADINGS))}"


def render(rows: Sequence[Row]) -> str:
    """The rows, each group under its name."""
    lines = []
    for before, row in zip((None, *rows), rows, strict=False):
        if before is None or before.group != row.group:
            lines.append(f"\n{row.group}")
        between = f"{_number(row.interval[0])} - {_number(row.interval[1])}" if row.interval else ""
        target = "" if row.at_most is None else f"<= {row.at_most:g}"
        measured = f"{_number(row.value)} {row.unit}".rstrip()
        lines.append(_line((f"  {row.what}", measured, between, target, row.verdict)))
    return "\n".join(lines)


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    first, *others = cells
    columns = [f"{cell:>{width}}" for cell, width in zip(others, _WIDTHS[1:], strict=True)]
    return "  ".join([f"{first:<{_WIDTHS[0]}}", *columns]).rstrip()
