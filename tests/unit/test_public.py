"""The package's front door: the names, their documentation, and what it does not pull in."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.resources import files

import pytest

import celery_durable
from celery_durable.steps import context

PROMISED = {
    "durable_task", "DurableTask", "DurableContext", "AsyncDurableContext", "RunOptions", "RetryPolicy", "current_step",
    "DurableError", "TerminalError", "RetryableError", "RetriesExhausted", "JournalMismatchError", "ContextInStepError",
    "EntryNotRecordableError", "RecoveryLimitExceeded", "ConfigurationError", "TaskCancelled", "cancel", "Runs",
}  # fmt: skip


def test_what_is_promised_is_exported() -> None:
    assert set(celery_durable.__all__) >= PROMISED
    assert len(celery_durable.__all__) == len(set(celery_durable.__all__))


def test_what_is_beyond_the_promise_are_errors() -> None:
    for name in set(celery_durable.__all__) - PROMISED:
        assert issubclass(getattr(celery_durable, name), celery_durable.DurableError)


@pytest.mark.parametrize("name", ["pause"])
def test_what_has_no_effect_yet_is_not_exported(name: str) -> None:
    assert not hasattr(celery_durable, name)
    assert not hasattr(celery_durable.DurableContext, name)
    assert not hasattr(celery_durable.AsyncDurableContext, name)


@pytest.mark.parametrize("name", celery_durable.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    public = getattr(celery_durable, name)
    assert inspect.getdoc(public)
    if inspect.isclass(public) and public.__module__.startswith("celery_durable"):
        for attribute, member in vars(public).items():
            if inspect.isfunction(member) and not attribute.startswith("_"):
                assert inspect.getdoc(getattr(public, attribute)), f"{name}.{attribute}"


def test_the_package_is_typed() -> None:
    assert files("celery_durable").joinpath("py.typed").is_file()


@pytest.mark.parametrize("room", ["values", "journal", "config", "steps", "drivers"])
def test_the_lower_half_knows_neither_celery_nor_redis(room: str) -> None:
    imported = {
        line.split()[1].partition(".")[0]
        for module in files("celery_durable").joinpath(room).iterdir()
        if module.name.endswith(".py")
        for line in module.read_text("utf-8").splitlines()
        if line.startswith(("import ", "from "))
    }
    assert len(imported) > 5
    assert not imported & {"celery", "redis", "billiard"}


SENDER = """
import sys
from types import SimpleNamespace
from celery import Celery, signals
from celery_durable import durable_task

app = Celery("shop", broker="memory://")

@durable_task(app=app)
def order(ctx) -> None: ...

order.delay()
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("celery_durable.")}
print(sorted(rooms & {"task", "steps", "drivers", "ending", "redis"}))
signals.celeryd_after_setup.send("worker", instance=SimpleNamespace(app=app))
loaded = set(sys.modules)
print("celery_durable.task.runner" in loaded, "celery_durable.ending.postrun" in loaded)
order.apply()
print(sorted(name for name in set(sys.modules) - loaded if name.startswith("celery_durable.")))
"""


def test_what_runs_bodies_is_loaded_by_workers_and_by_no_sender() -> None:
    """In a worker before its pool has forked: a child that must import it at its first task would be late."""
    done = subprocess.run([sys.executable, "-c", SENDER], check=True, capture_output=True, text=True)

    assert done.stdout.splitlines() == [
        "['task']",
        "True True",
        "[]",
    ]


def test_what_only_bodies_use_is_loaded_when_it_is_named() -> None:
    assert {"AsyncDurableContext", "DurableContext", "current_step"} <= {*dir(celery_durable)}
    assert celery_durable.DurableContext is context.DurableContext
    with pytest.raises(AttributeError, match="has no attribute 'Durable'"):
        celery_durable.Durable  # noqa: B018
