"""The time it takes to import celery_durable, over what any Celery app with Redis and Pydantic imports."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.report import Row
from benchmarks.sample import ratios

GROUP = "Import"
_BASE = "celery.app.task, redis, pydantic"
_OURS = "celery_durable"
_PROJECT = Path(__file__).parents[1]
_CODE = "import gc, time; gc.{}(); began = time.process_time(); import {}; print(time.process_time() - began)"


def measure(rounds: int) -> list[Row]:
    """Interleave fresh processes that import the one or the other; CPU time, which other processes disturb least.

    A full garbage collection takes as long as a tenth of all these imports, and falls into either, or none, by a few
    objects more or less: without the collector the imports themselves are compared.
    """
    return [*_compare("enable", "", rounds), *_compare("disable", " (no garbage collector)", rounds)]


def _compare(collector: str, how: str, rounds: int) -> list[Row]:
    base, ours = [], []
    for round_number in range(rounds + 1):
        one, other = _seconds(collector, _BASE), _seconds(collector, _OURS)
        if round_number:  # the first writes bytecode
            base.append(one * 1e3)
            ours.append(other * 1e3)
    return [
        Row.of(GROUP, f"(import {_BASE}){how}", base, "ms"),
        Row.of(GROUP, f"import {_OURS}, against that{how}", ratios(ours, base), at_most=1.15),
    ]


def _seconds(collector: str, modules: str) -> float:
    command = [sys.executable, "-c", _CODE.format(collector, modules)]
    # As its users have it, with bytecode: compiling it would take twice as long as all the rest.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=_PROJECT, env=environ, check=True, capture_output=True, text=True)
    return float(done.stdout)
