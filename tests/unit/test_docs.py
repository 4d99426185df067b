"""README and docs are true as they stand: each Python block runs alone, links lead somewhere, figures are computed."""

import re
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

from celery_durable import RetryPolicy, RunOptions

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A Python block of a page."""

    page: Path
    line: int
    code: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def _blocks() -> list[Block]:
    def never(_example: Example) -> None:
        raise AssertionError("each block runs in a process of its own")

    sybil = Sybil(parsers=[CodeBlockParser("python", evaluator=never)])
    return [Block(page, example.line, example.parsed) for page in PAGES for example in sybil.parse(page).examples()]


BLOCKS = _blocks()


def test_the_pages_have_python_to_run() -> None:
    assert {block.page.name for block in BLOCKS} >= {"README.md", "waits.md", "progress.md", "retry.md"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_runs_as_pasted_into_a_file(block: Block, tmp_path: Path) -> None:
    pasted = tmp_path / "pasted.py"
    pasted.write_text(block.code)
    # In warnings, too, a reader should not be left alone.
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pasted"]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{block.place}\n{ran.stderr}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_names_nothing_that_it_does_not_have(block: Block, tmp_path: Path) -> None:
    pasted = tmp_path / "pasted.py"
    pasted.write_text(block.code)
    # A name in the body of a task is looked up when the task runs, which importing the block does not show.
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811,F401", str(pasted)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{block.place}\n{ran.stdout}"


# -- links -------------------------------------------------------------------------------------------------------------


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in _links(PAGES[0].read_text())}
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in linked] == []


def test_the_description_on_a_package_index_has_absolute_links() -> None:
    facts = metadata("celery-durable")
    description = facts.get_payload() or facts["Description"]
    links = _links(str(description))
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    assert {url.partition(",")[0] for url in facts.get_all("Project-URL")} >= {"Documentation", "Source", "Changelog"}


# -- figures -----------------------------------------------------------------------------------------------------------


def _waits_in_all(options: RunOptions | RetryPolicy) -> float:
    backoff = options.backoff
    assert backoff is not None
    assert backoff.max_attempts is not None
    return sum(backoff.delay(failures) for failures in range(1, backoff.max_attempts))


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("RunOptions(max_attempts=5)", "0.75 s"),
        ("RunOptions(max_attempts=10)", "22.75 s"),
        ("RunOptions(max_attempts=10, initial_retry_interval=SECOND, max_retry_interval=MINUTE)", "243 s"),
        ("RetryPolicy()", "3783.5 s"),
    ],
)
def test_the_readme_adds_up_the_waits(options: str, seconds: str) -> None:
    names = {
        "RunOptions": RunOptions,
        "RetryPolicy": RetryPolicy,
        "SECOND": timedelta(seconds=1),
        "MINUTE": timedelta(minutes=1),
    }
    assert f"{_waits_in_all(eval(options, names)):g} s" == seconds  # noqa: S307  our own text, four lines above
    [row] = [line for line in PAGES[0].read_text().splitlines() if line.startswith("|") and f"`{options}` |" in line]
    assert f"| {seconds}" in row


def test_the_settings_page_has_every_setting_with_its_mark() -> None:
    from celery_durable.config.settings import TASK_OPTIONS, Settings

    page = (PROJECT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `durable_(\w+)` \|[^|]*\| ?(✓?) ?\|", page, re.MULTILINE))
    of_tasks = set(TASK_OPTIONS.values())
    assert {name: mark == "✓" for name, mark in rows.items()} == {name: name in of_tasks for name in Settings._fields}


# -- tests by promise --------------------------------------------------------------------------------------------------

TESTS = PROJECT / "docs" / "tests.md"


def test_the_log_lines_of_the_page_for_operators_are_those_of_the_code() -> None:
    """Up to the first fact of a line, and without what quotes it."""
    section = (PROJECT / "docs" / "operate.md").read_text("utf-8").partition("## Log lines")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    source = "\n".join(path.read_text("utf-8") for path in (PROJECT / "celery_durable").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", source)  # a text that goes on in the next line

    assert len(lines) == 22
    assert [line for line in lines if not all(part in code for part in re.split(r"\d+|'charge'|\.\.\.|, ", line))] == []


def test_each_test_file_stands_in_the_table_of_promises_once() -> None:
    listed = re.findall(r"\]\(\.\./(tests/\w+/test_\w+\.py)\)", TESTS.read_text())
    files = (PROJECT / "tests").glob("**/test_*.py")
    assert sorted(listed) == sorted(str(file.relative_to(PROJECT)) for file in files)


def test_a_promise_has_one_name_in_every_ring() -> None:
    rows = re.findall(r"^\|[^|]+\| `(test_\w+)` \|(.+)\|$", TESTS.read_text(), re.MULTILINE)
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)) > 50
    for name, links in rows:
        assert {Path(link).stem for link in _links(links)} == {name}


# -- what the examples do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paid", "end"), [(True, "shipped"), (False, "not paid")])
def test_the_order_that_waits_for_its_payment_is_shipped_if_it_is_paid(paid: bool, end: str, tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if block.page.name == "waits.md" and "is_paid" in block.code]
    (tmp_path / "pasted.py").write_text(block.code)
    # Eager mode never waits.
    script = f"import pasted; pasted.is_paid = lambda item: {paid}; print(pasted.order.apply(('sofa',)).get())"
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == f"{end}\n", ran.stderr
