"""What the shell prints, without a server: tables that fit, and nothing that a terminal would take for a command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from math import inf, nan
from typing import Any

import click
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_durable.cli import durable
from celery_durable.cli.live import lines_between, print_changes
from celery_durable.cli.output import print_json, shown
from celery_durable.cli.printable import one_line
from celery_durable.cli.reports import print_findings, print_versions
from celery_durable.cli.runs import print_run, print_runs
from celery_durable.operate.examination import Finding, Level
from celery_durable.operate.runs import Page
from celery_durable.operate.search import read_time
from celery_durable.records import ActionRecord, AttemptRecord, Run, StepRecord
from celery_durable.redis.survey import Build

NOON = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)
ID = "8e8e30ca-1cf6-49a5-a62c-27c4b61c9026"
WORKER = "worker-7d4b9c:3f2a9c1b:4711"

STEP = StepRecord("step", "charge card", "1", "done", 1, NOON, NOON, 12, preview='{"id": "ch_7"}')
ATTEMPT = AttemptRecord(1, NOON, None, "STARTED", WORKER, "5f3c2a1b9d8e")
RUN = Run(
    id=ID, task="shop.tasks.order", state="STARTED", args=[7], kwargs={"gift": True}, created=NOON, began=NOON,
    ended=None, worker=WORKER, lease=NOON, waits_for="", until=None, build="5f3c2a1b9d8e", error="",
    attempts=(ATTEMPT,), steps=(STEP,), actions=(ActionRecord("wake", "ann", NOON),),
)  # fmt: skip
FAILED = replace(RUN, state="FAILURE", ended=NOON, error="TerminalError: " + "declined " * 50)
ASLEEP = replace(
    RUN, state="SUSPENDED", waits_for="the end of a sleep: 'until tomorrow'", until=NOON + timedelta(days=1)
)
FINDING = Finding("index", Level.PROBLEM, f"40 of 2,000 entries are stranded ({ID}, {ID})", "celery durable wake ID")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Print something as a command does, on a terminal of so many columns (None: where no terminal is)."""

    def printing(columns: int | None, show: Any, *facts: Any, no_color: bool = False) -> str:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("LINES", "40")
            monkeypatch.setenv("TTY_COMPATIBLE", "1")
            monkeypatch.setenv("FORCE_COLOR", "1")
        context = CLIContext(app=object(), no_color=no_color, workdir=None)
        with click.Context(durable, obj=context):
            show(*facts)
        return capsys.readouterr().out

    return printing


VIEWS = {
    "list": (print_runs, Page([RUN, FAILED, ASLEEP], f"1895000000000-{ID}"), {"STARTED": 1, "FAILURE": 20_000}),
    "show": (print_run, replace(FAILED, attempts=(ATTEMPT, replace(ATTEMPT, number=2, ended=NOON, how="FAILURE")))),
    "doctor": (print_findings, [FINDING, Finding("memory", Level.OK, "a journal takes 1.2 kB")]),
    "versions": (print_versions, [Build("shop.tasks.order", "5f3c2a1b9d8e", 12_345, 3, NOON)]),
}


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("view", VIEWS)
def test_a_table_fits_its_terminal(printed: Any, view: str, columns: int) -> None:
    lines = printed(columns, *VIEWS[view], no_color=True).splitlines()

    plain = [click.unstyle(line).rstrip() for line in lines if "--cursor" not in line]
    assert max(map(len, plain)) <= columns
    cells = {cell for line in plain for cell in line.split()}
    if view in ("list", "show"):
        assert {ID, f"{NOON.astimezone():%H:%M:%S}", "FAILURE"} <= cells


def test_a_narrow_table_says_as_much_as_a_wide_one(printed: Any) -> None:
    run = replace(FAILED, attempts=(ATTEMPT, replace(ATTEMPT, number=2, worker="a-host-with-a-long-name:35a855c0:1")))

    wide, narrow = (printed(columns, print_run, run, no_color=True) for columns in (160, 80))

    def letters(text: str) -> Counter[str]:
        return Counter("".join(text.split()))

    assert letters(narrow) - letters(wide) == Counter()
    assert letters(wide) - letters(narrow) == letters("worker build what"), "their columns have no heads"


@pytest.mark.parametrize("view", VIEWS)
def test_colours_are_for_terminals(printed: Any, view: str) -> None:
    assert "\x1b[" not in printed(None, *VIEWS[view])
    assert "\x1b[3" in printed(80, *VIEWS[view]) or view == "versions"
    assert "\x1b[" not in printed(80, *VIEWS[view], no_color=True)


def test_a_text_of_a_user_is_no_command_for_the_terminal(printed: Any) -> None:
    wild = replace(FAILED, error="\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] \\", task="a[/]b")

    text = printed(None, print_run, wild)

    lines = [line.rstrip() for line in text.splitlines()]
    assert r"error        \x1b[31mred\x1b]0;title\x07 [bold]x[/bold]" + " \\" in lines
    assert "a[/]b" in text
    assert shown("é\n").plain == "é\n"


def test_the_lines_of_a_watch_move_no_cursor() -> None:
    wild = replace(ENDED, actions=(*ENDED.actions, ActionRecord("wake", "ann\r\nbob\x1b[2K", NOON)))

    [line] = lines_between(ENDED, wild)

    assert one_line(line) == r"wake by ann\r\nbob\x1b[2K"


def test_times_are_those_of_the_zone_that_the_head_names(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of the other half of the year, where the clocks are changed."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        run = replace(RUN, created=datetime.now(timezone.utc) - timedelta(days=182))
        text = printed(160, print_runs, Page([run], None), {})
        zone = datetime.now().astimezone().tzinfo
    finally:
        monkeypatch.undo()
        time.tzset()

    assert f"created ({zone})" in text
    assert f"{run.created.astimezone(zone):%Y-%m-%d %H:%M:%S}" in text


def test_what_json_has_no_word_for_is_a_text(printed: Any) -> None:
    run = json.loads(printed(None, print_json, [replace(RUN, args=[nan, inf, 1.5])]), parse_constant=pytest.fail)

    assert run["args"] == ["nan", "inf", 1.5]


def test_records_are_documents_with_their_attributes_as_keys(printed: Any) -> None:
    [run, finding] = map(json.loads, printed(None, print_json, [RUN, FINDING]).splitlines())

    assert set(run) == set(RUN.__dataclass_fields__)
    assert run["created"] == "2030-01-31T12:00:00+00:00"
    assert run["steps"][0]["name"] == "charge card"
    assert finding["level"] == "problem"


def test_a_key_that_is_no_text_is_shown_as_one(printed: Any) -> None:
    """Arguments of another serializer than JSON may have such keys."""
    run = json.loads(printed(None, print_json, [replace(RUN, kwargs={"by": {(1, 2): None}})]))

    assert run["kwargs"] == {"by": {"(1, 2)": None}}
    assert (run["created"], run["steps"][0]["name"]) == ("2030-01-31T12:00:00+00:00", "charge card")


# -- watch -------------------------------------------------------------------------------------------------------------

ENDED = replace(
    RUN, state="SUCCESS", ended=NOON, attempts=(replace(ATTEMPT, how="SUCCESS", ended=NOON),),
    steps=(STEP, StepRecord("step", "ship", "2", "done", 3, NOON, NOON, 40)),
)  # fmt: skip


def test_each_change_of_a_run_is_a_line() -> None:
    retrying = StepRecord("step", "ship", "2", "retrying", 1, NOON, None, None, "OSError: closed")
    waiting = replace(RUN, state="RETRY", waits_for="its next attempt", until=NOON, steps=(STEP, retrying))

    assert list(lines_between(None, replace(RUN, attempts=())))[-1] == "STARTED, attempt 0"
    assert list(lines_between(None, RUN)) == ["shop.tasks.order, steps and waits recorded: 1", "STARTED, attempt 1"]
    step, state = lines_between(RUN, waiting)
    assert step == "step 'ship' at 2: retrying, execution 1: OSError: closed"
    assert state.startswith("RETRY, attempt 1: its next attempt (until ")
    assert list(lines_between(waiting, ENDED)) == [
        "step 'ship' at 2: done in 40 ms, execution 3",
        "SUCCESS, attempt 1",
    ]
    assert list(lines_between(ENDED, replace(ENDED, actions=(*ENDED.actions, ActionRecord("retry", "", NOON))))) == [
        "retry by somebody"
    ]


def test_where_no_terminal_is_a_watch_prints_lines(printed: Any) -> None:
    lines = printed(None, print_changes, iter([RUN, ENDED])).splitlines()

    assert [line.partition(" ")[2] for line in lines] == [*lines_between(None, RUN), *lines_between(RUN, ENDED)]


def test_on_a_terminal_a_watch_ends_with_the_whole_run(printed: Any) -> None:
    many = tuple(replace(STEP, place=str(number), name=f"step{number}") for number in range(1, 101))

    text = click.unstyle(printed(100, print_changes, iter([replace(RUN, steps=many), replace(ENDED, steps=many)])))

    live, _, whole = text.partition("SUCCESS")
    assert "step100 " in live
    assert "step1 " not in live, "only the last steps are shown while it goes on"
    assert "step1 " in whole


# -- flower ------------------------------------------------------------------------------------------------------------


def test_flower_is_started_with_its_options_when_our_pages_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("tornado_argv", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def plain(ctx: click.Context, tornado_argv: tuple[str, ...]) -> None:
        done.extend([ctx.parent is ctx.find_root(), tornado_argv])

    monkeypatch.setattr("flower.command.flower", plain)
    monkeypatch.setattr("celery_durable.flower.install", lambda: done.append("installed"))

    started = CliRunner().invoke(durable, ["flower", "--port=5556", "--help-me"])

    assert (started.exit_code, done) == (0, ["installed", True, ("--port=5556", "--help-me")])


def test_a_flower_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def plain() -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("flower.command.flower", plain)
    monkeypatch.setattr("celery_durable.flower.install", lambda: None)

    refused = CliRunner().invoke(durable, ["flower"])

    assert (refused.exit_code, refused.output) == (1, "Error: Flower cannot start: [Errno 98] Address already in use\n")


def test_without_flower_the_shell_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flower.command", None)

    refused = CliRunner().invoke(durable, ["flower"])

    assert refused.exit_code == 1
    assert refused.output.endswith("; pip install 'celery-durable[flower]'\n")


# -- what people write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00Z", "2030-01-31T12:00:00+00:00", "2030-01-31T13:00+01:00"])
def test_a_time_is_read_on_all_versions_of_python(text: str) -> None:
    assert read_time(text) == NOON


def test_a_time_that_names_no_zone_is_of_the_given_one_or_of_this_machine() -> None:
    assert read_time("2030-01-31T12:00", timezone.utc) == NOON
    assert read_time("2030-01-31T12:00") == datetime(2030, 1, 31, 12).astimezone()


@pytest.mark.parametrize("arguments", [["--attribute", "=o1"], ["--attribute", "order"], ["--since", "soon"]])
def test_a_filter_that_cannot_be_read_is_refused_before_the_app_is_asked(arguments: list[str]) -> None:
    refused = CliRunner().invoke(durable, ["list", *arguments])

    assert refused.exit_code == 2
    assert f"{arguments[-1]!r}" in refused.output


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_the_help_of_celery_loads_no_tables_and_no_redis() -> None:
    code = (
        "import sys; from celery.bin.celery import celery; before = set(sys.modules); "
        "celery(['--help'], standalone_mode=False); "
        "late = {'rich', 'celery_durable.operate.runs', 'celery_durable.redis', 'celery_durable.cli.output'}; "
        "print(*sorted(late & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "durable" in done.stdout
    assert done.stderr.split() == []


def test_every_command_says_what_it_does() -> None:
    for name, command in durable.commands.items():
        assert command.get_short_help_str(), name
