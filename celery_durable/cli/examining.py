"""``celery durable doctor`` and ``versions``: how all runs are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import click

from .group import loaded_app, refusals
from .options import as_json


@click.command()
@as_json
@click.pass_context
def doctor(ctx: Any, /, *, as_json: bool) -> None:
    """Examine Redis, the index and the runs, and say what to do. The exit code is 1 if a person has to do something."""
    from celery_durable.operate.examination import REDIS, Level, examine

    from .output import print_json
    from .reports import print_findings

    with refusals():
        app = loaded_app(ctx)
        findings = list(examine(app))
        if findings[0].check != REDIS:
            findings = [*_of_the_start(app), *findings]
    print_json(findings) if as_json else print_findings(findings)
    if any(finding.level == Level.PROBLEM for finding in findings):
        ctx.exit(1)


def _of_the_start(app: Any) -> Iterator[Any]:
    """What a worker of the app logs when it starts."""
    from celery_durable.operate.examination import Finding, Level
    from celery_durable.task.of_app import durable_tasks
    from celery_durable.worker.startup import risks_of

    tasks = list(durable_tasks(app).values())
    if not tasks:
        yield Finding("start", Level.PROBLEM, "the app has no durable tasks", "name the app of your workers: celery -A")
    risks = list(risks_of(app, tasks))
    if not risks:
        yield Finding("start", Level.OK, "a worker that starts now finds nothing to warn of")
    for risk in risks:
        yield Finding("start", Level.PROBLEM if risk.level > logging.INFO else Level.NOTE, risk.text)


@click.command()
@as_json
@click.pass_context
def versions(ctx: Any, /, *, as_json: bool) -> None:
    """Count live runs by task and build: a build without runs may go."""
    from celery_durable.operate.versions import versions as live_versions

    from .output import print_json
    from .reports import print_versions

    with refusals():
        found, is_cut = live_versions(loaded_app(ctx))
    print_json(found) if as_json else print_versions(found)
    if is_cut:
        click.echo(
            "there are more live runs than were counted: a build that is missing may have some of them", err=True
        )
