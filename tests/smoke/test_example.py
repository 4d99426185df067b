"""The example does what the README says of it: a worker is killed amid orders, and each is charged once."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes import Process

PROJECT = Path(__file__).parents[2]


@pytest.mark.local_nodes("it starts its own server and workers")
def test_every_order_of_the_demo_is_charged_once(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    command = [sys.executable, "-m", "example_app.demo", "--orders", "8", "--kills", "1"]
    demo = Process(command, log, {**os.environ, "PYTHONPATH": str(PROJECT)})
    try:
        assert demo.wait(deadline=90) == 0, log.read_text()
    finally:
        demo.kill()
    table = log.read_text()
    orders = re.findall(r"^\d\d +(\d+) +(\d+) +(\d+) +(\d+)$", table, re.MULTILINE)
    assert [charges for *_, charges in orders] == ["1"] * 8, table
    assert max(int(attempts) for attempts, *_ in orders) >= 2, table
