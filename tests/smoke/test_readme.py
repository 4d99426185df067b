"""The README's first example, pasted into a file, does what the README says of it."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import PROJECT, Process
from tests.servers import RedisServer
from tests.waiting import eventually

README = (PROJECT / "README.md").read_text()

pytestmark = pytest.mark.local_nodes("it runs the README's own commands")


@pytest.fixture
def shop(tmp_path: Path, redis_url: str) -> Path:
    """A folder with `shop.py` as in the README, on the test's own Redis."""
    [example] = re.findall(r"```python\n(# shop\.py\n.*?)```", README, re.DOTALL)
    text = example.replace("redis://localhost:6379/0", redis_url)
    assert text != example
    (tmp_path / "shop.py").write_text(text)
    return tmp_path


@pytest.fixture
def commands() -> tuple[str, str]:
    """The two commands that run it."""
    worker, send = re.findall(r"^\$ (.*\bshop\b.*)$", README, re.MULTILINE)[:2]
    assert worker.startswith("celery -A shop worker"), worker
    assert send.startswith("python -c"), send
    return worker, send


def environment() -> dict[str, str]:
    # The commands of this interpreter, whether its environment is active or not.
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}


@pytest.fixture
def worker(shop: Path, commands: tuple[str, str]) -> Iterator[Path]:
    """The log of the worker that the first command starts."""
    log = shop / "worker.log"
    process = Process(["sh", "-c", f"cd {shop} && exec {commands[0]}"], log, environment())
    try:
        eventually(lambda: "ready." in log.read_text(), 30, what="the worker to be ready")
        yield log
    finally:
        process.kill()


def test_the_two_commands_run_the_example(
    shop: Path, commands: tuple[str, str], worker: Path, redis_server: RedisServer
) -> None:
    sent = subprocess.run(
        shlex.split(commands[1]), cwd=shop, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )

    assert (sent.returncode, sent.stdout) == (0, "charge of o1\n"), sent.stderr
    assert re.findall(r"POST /\w+", worker.read_text()) == ["POST /charges", "POST /shipments"]
    [run] = redis_server.client().keys("durable:*:run:*")
    steps = {name: value for name, value in redis_server.client().hgetall(run).items() if name.startswith("step:")}
    assert {name: '"state":"done"' in value for name, value in steps.items()} == {"step:1": True, "step:2": True}


def test_the_first_example_takes_no_tasks_of_the_second(
    shop: Path, commands: tuple[str, str], worker: Path, redis_url: str
) -> None:
    """A reader tries both on one Redis, and may leave the first worker running."""
    order = "from example_app.checkout import place; from example_app.models import Order; place(Order(id='o2'))"
    for command, more in (([sys.executable, "-c", order], {"REDIS_URL": redis_url}), (shlex.split(commands[1]), {})):
        # What the first command sent would be received before what the second one waits for.
        subprocess.run(command, cwd=shop, env=environment() | more, timeout=60, check=True, capture_output=True)

    assert "unregistered task" not in worker.read_text()


def test_what_cannot_be_shipped_is_refunded(shop: Path) -> None:
    script = (
        "import shop, celery_durable\n"
        "def refuse(order_id): raise celery_durable.TerminalError('no carrier goes there', 422)\n"
        "shop.ship = refuse\n"
        "try: shop.checkout('o1')\n"
        "except celery_durable.TerminalError as error: print(error.status_code)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=shop, env=environment(), capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"POST /\w+", ran.stdout) == ["POST /charges", "POST /refunds"]
    assert ran.stdout.splitlines()[-1] == "422"
