"""A short round of chaos; `make chaos` plays longer ones."""

import os
import random

import pytest

from tests.chaos.rounds import Round

SECONDS = 30
"""How long faults strike. What follows takes as long as the slowest program; see `rounds` for how long at most."""


@pytest.mark.timeout(600)
def test_a_round_of_chaos_contradicts_no_invariant() -> None:
    seed = int(os.environ.get("CHAOS_SEED", "") or random.randrange(10**6))
    programs = int(os.environ.get("CHAOS_PROGRAMS", "40"))

    report = Round(seed, programs, SECONDS).play()

    found = "\n".join(str(violation) for violation in report.violations)
    assert not found, f"make chaos SEED={seed} MINUTES=0 PROGRAMS={programs}\n{found}\n{report}\nsee {report.dump}"
