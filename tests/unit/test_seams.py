"""A name that another package keeps to itself, and that its installed version does not have, is told at import."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import celery_durable
from celery_durable.redis.client.redis_py import REDIS_PY
from celery_durable.seams.asyncio import PYTHON
from celery_durable.seams.celery import CELERY
from celery_durable.seams.flower import FLOWER
from celery_durable.seams.kombu import KOMBU
from celery_durable.seams.lookup import Package

PACKAGES = [CELERY, FLOWER, KOMBU, REDIS_PY]

SHOP = Package("shop", ">=2.1,<2.2", "2.3.0")
ADVICE = "; shop>=2.1,<2.2 has it: install such a version, or a celery-durable that is made for this one"


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of a package that keeps something to itself."""
    module = ModuleType("shop.stock")
    source = """
class Shelf:
    _size = 3
    def __init__(self, size=3):
        def counted(): ...
        self._left = size
"""
    exec(source, vars(module))  # noqa: S102  a module of another package
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.stock", module)
    vars(module)["Shelf"].__module__ = "shop.stock"
    return module


def test_what_is_there_is_found(shop: ModuleType) -> None:
    assert SHOP.look_up("shop.stock", "Shelf._size") == 3
    SHOP.check_inside("shop.stock", "Shelf.__init__", "_left", "counted", "size")


def test_an_attribute_is_told_from_a_parameter_of_its_name(shop: ModuleType) -> None:
    SHOP.check_inside("shop.stock", "Shelf.__init__", "_left", "size")
    SHOP.check_attributes("shop.stock", "Shelf.__init__", "_left")
    with pytest.raises(ImportError, match=r"has no shop\.stock\.Shelf\.__init__: size,"):
        SHOP.check_attributes("shop.stock", "Shelf.__init__", "size")


def test_what_is_missing_is_told_with_the_versions_that_have_it(shop: ModuleType) -> None:
    def message(look: Callable[[], Any]) -> str:
        with pytest.raises(ImportError) as caught:
            look()
        return str(caught.value)

    started = "shop 2.3.0 has no {}, which celery-durable uses" + ADVICE
    assert message(lambda: SHOP.look_up("shop.stock", "Shelf._width")) == started.format("shop.stock.Shelf._width")
    assert message(lambda: SHOP.look_up("shop.till", "open")) == started.format("shop.till.open")
    assert message(lambda: SHOP.check_inside("shop.stock", "Shelf.__init__", "_left", "_right")) == started.format(
        "shop.stock.Shelf.__init__: _right"
    )


def test_which_version_is_installed_is_told_by_its_metadata() -> None:
    with pytest.raises(ImportError, match=f"^kombu {importlib.metadata.version('kombu')} has no kombu.shelf.size, "):
        KOMBU.look_up("kombu.shelf", "size")


def test_a_function_of_somebody_else_says_nothing(shop: ModuleType) -> None:
    """Tools that trace programs put theirs around it."""
    original = shop.Shelf.__init__

    def traced(self: Any) -> None:
        original(self)

    shop.Shelf.__init__ = traced
    SHOP.check_inside("shop.stock", "Shelf.__init__", "_left", "_right")

    shop.Shelf.__init__ = functools.wraps(original)(traced)
    SHOP.check_inside("shop.stock", "Shelf.__init__", "_left", "counted", "size")
    with pytest.raises(ImportError):
        SHOP.check_inside("shop.stock", "Shelf.__init__", "_right")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_versions_that_are_told_are_those_that_an_installation_takes(package: Package) -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert re.search(rf'^    "{package.name}(\[\w+\])?{re.escape(package.versions)}",', pyproject, re.MULTILINE)


def test_the_versions_of_python_that_are_told_are_those_of_the_classifiers() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    minors = [int(each) for each in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', pyproject)]

    assert PYTHON.versions == f">=3.{min(minors)},<3.{max(minors) + 1}"
    with pytest.raises(ImportError, match=rf"^Python {platform.python_version().split('+')[0]} has no asyncio.shelf"):
        PYTHON.look_up("asyncio.shelf", "size")


# -- no other file of the library --------------------------------------------------------------------------------------

ROOT = Path(celery_durable.__file__).parent
ELSEWHERE = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent.name != "seams" and path.name != "redis_py.py"  # the seam to redis-py, beside who uses it
]
DOCUMENTED = {
    "celery", "celery.app.task", "celery.exceptions", "celery.result", "celery.utils", "celery.utils.dispatch",
    "celery.utils.log", "celery.worker", "celery.worker.control", "celery.worker.request", "celery.worker.state",
    "billiard", "billiard.einfo", "billiard.exceptions",
    "kombu", "kombu.compression", "kombu.exceptions", "kombu.serialization", "kombu.utils", "kombu.utils.encoding",
}  # fmt: skip
"""The modules of which others may import what is public."""


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """By their modules, the names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_a_seam_touches_what_others_keep_to_themselves(path: Path) -> None:
    assert "SLF001" not in path.read_text()  # the linter finds the rest
    for module, name in imported(path):
        if module.partition(".")[0] in ("celery", "kombu", "billiard"):
            assert module in DOCUMENTED
            assert not name.startswith("_")
