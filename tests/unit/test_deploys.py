"""The fingerprint of a task's function: another one where the code does something else, and nowhere else."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable.config import build

SOURCE = """
def task(ctx, order):
    "What it does."
    if order.kind in {"gift", "sample", None, 1, (2, 3)}:
        return ctx.run("wrap", lambda: [each for each in order.items if each in {"a", "b"}])
    def nested():
        "What this does."
        return order.id
    ctx.run("charge", nested)
    return order.items[1:3]
"""


def made(source: str, file: str = "shop.py") -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)  # noqa: S102
    return names["task"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "changed",
    [
        SOURCE.replace("What it does.", "Something else."),
        SOURCE.replace('    "What it does."\n', ""),
        SOURCE.replace('        "What this does."\n', ""),
        "\n\n\n" + SOURCE,
        SOURCE.replace("\n    ctx", "  # a comment\n    ctx"),
    ],
    ids=["another docstring", "no docstring", "none within", "moved", "a comment"],
)
def test_what_does_the_same_is_the_same_build(changed: str) -> None:
    assert changed != SOURCE
    assert build.of(made(changed, "elsewhere.py")) == build.of(made(SOURCE))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"charge"', '"pay"'), ("order.id", "order.no"), ('"b"', '"c"'), ("1:3", "1:4"), ("ctx, order", "c, order"),
     ("kind in", "kind not in"), ("nested()", "nested(x=1)"), ("None, 1", "None, True")],
)  # fmt: skip
def test_what_does_something_else_is_another_build(old: str, new: str) -> None:
    assert build.of(made(SOURCE.replace(old, new))) != build.of(made(SOURCE))


def test_it_is_the_same_in_every_process() -> None:
    program = f"from celery_durable.config import build\nexec({SOURCE!r})\nprint(build.of(task))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3", "4")
    }
    assert found == {build.of(made(SOURCE))}


def test_what_decorates_a_function_says_nothing_of_it() -> None:
    task = made(SOURCE)

    @functools.wraps(task)
    def decorated(*args: Any) -> Any:
        return task(*args)

    assert build.of(decorated) == build.of(task) == build.of(functools.partial(decorated, 1))


def test_what_is_no_function_has_a_build_all_the_same() -> None:
    class Callable_:  # noqa: N801
        def __call__(self) -> int:
            return 1

    class Other:
        def __call__(self) -> int:
            return 2

    assert len({build.of(Callable_()), build.of(Other()), build.of(len), build.of(max)}) == 4
