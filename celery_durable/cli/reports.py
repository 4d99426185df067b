"""What ``doctor`` and ``versions`` have found, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery_durable.operate.examination import Finding
from celery_durable.redis.survey import Build

from .output import coloured, console, shown, table, time_cell


def print_findings(findings: Iterable[Finding]) -> None:
    """A row per finding: how bad it is, what was looked at, what was found, and what to do."""
    made = table("level", "check", "found", "what to do")
    for one in findings:
        made.add_row(coloured(one.level), shown(one.check), shown(one.found), shown(one.advice))
    console().print(made)


def print_versions(found: Sequence[Build]) -> None:
    """A row per task and build."""
    out = console()
    if not found:
        out.print("there are no live runs")
        return
    made = table("task", "build", "runs", "stalled", "oldest")
    for one in found:
        build = shown(one.build or "(not known)")
        made.add_row(shown(one.task), build, f"{one.runs:,}", f"{one.stalled:,}", time_cell(one.oldest))
    out.print(made)
