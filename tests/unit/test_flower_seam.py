"""The seam to Flower: what its pages and its API are, and how its templates are added to."""

import re
from collections.abc import Callable
from pathlib import Path

import flower
import pytest
from tornado.template import Template

from celery_durable.flower.shown import utf8
from celery_durable.seams import flower as seam

TEMPLATES = Path(flower.__file__).parent / "templates"


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Edit a template of Flower's as a later version may."""
    for path in TEMPLATES.glob("*.html"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setitem(seam.settings, "template_path", str(tmp_path))

    def edit(name: str, old: str, new: str) -> None:
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))

    return edit


def test_the_navigation_has_one_tab_more_that_looks_like_its_neighbour() -> None:
    texts = seam.templates("durable", "")

    tabs = re.findall(r"<li\b.*?</li>", texts["navbar.html"], re.DOTALL)
    [(place, broker)] = [(number, tab) for number, tab in enumerate(tabs) if "reverse_url('broker')" in tab]
    assert tabs[place + 1] == broker.replace("broker", "durable").replace("Broker", "Durable")
    assert texts["navbar.html"].replace(tabs[place + 1], "").split() == (TEMPLATES / "navbar.html").read_text().split()


def test_the_page_of_a_task_loads_a_script() -> None:
    texts = seam.templates("durable", "<script></script>")

    assert "{% block extra_scripts %}<script></script>{% end %}" in texts["task.html"]
    assert texts["base.html"] == (TEMPLATES / "base.html").read_text()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("navbar.html", "reverse_url('broker')", "reverse_url('brokers')"),
        ("task.html", 'id="taskid"', 'id="task-id"'),
        ("base.html", "{% block extra_scripts %}", "{% block more_scripts %}"),
    ],
)
def test_a_template_that_looks_otherwise_is_told_with_the_versions(
    edited: Callable[..., None], name: str, old: str, new: str
) -> None:
    edited(name, old, new)

    with pytest.raises(ImportError, match=rf"^flower {flower.__version__} has no templates/{name}: .*flower>=2.0.1,<"):
        seam.templates("durable", "")


def test_a_template_encodes_by_the_name_that_is_replaced() -> None:
    assert Template("{{ text }}").generate(text="a\udcff", **{seam.ENCODER: utf8}) == b"a\\udcff"


def test_rows_of_tasks_are_found_by_their_ids() -> None:
    row = {"uuid": "t1", "state": "STARTED"}
    assert seam.rows_of({"draw": 1, "data": [row]}) == {"t1": row}
    assert seam.rows_of({"draw": 1, "data": []}) == {}
    assert seam.rows_of("Unauthorized") == {}
