"""Twenty orders, workers that are killed amid their charges, and the count of what was charged in the end.

It starts a Valkey server, the gateway of the example and a worker (`celery -A example_app worker`), each as
a process of its own, sends the orders, kills the worker with SIGKILL while charges are in flight, starts
another, and prints what each order took. The exit status is 0 only if every order succeeded and was charged
exactly once.
"""

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from celery.states import SUCCESS
from redis.exceptions import RedisError

import example_app
from example_app.checkout import place
from example_app.demo.journal import Journals
from example_app.demo.progress import Progress
from example_app.demo.server import NoServerError
from example_app.demo.shop import Shop
from example_app.demo.stage import DemoFailedError, Interrupted, Stage
from example_app.demo.table import Row, render
from example_app.gateway import SUPPLIERS, Report
from example_app.models import Order

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from example_app.models import Receipt

PROJECT = Path(example_app.__file__).resolve().parents[1]


class Demo:
    """The story: send orders, kill workers, wait for the last order, check the books."""

    def __init__(self, stage: Stage, shop: Shop, options: argparse.Namespace) -> None:
        self._stage = stage
        self._shop = shop
        self._processes: int = options.processes
        self._orders = [f"{number:02}" for number in range(1, options.orders + 1)]
        self._results: dict[str, AsyncResult[Receipt]] = {}
        self._journals = Journals(shop.redis)
        self._progress = Progress(options.orders)
        self._worker = shop.start_worker(self._processes)
        self._workers = 1

    def send(self) -> None:
        """All at once: the worker takes as many as it has processes."""
        for order in self._orders:
            self._results[order] = place(Order(id=order))

    def kill_workers(self, times: int) -> None:
        """Spread over the time that the orders take."""
        for kill in range(1, times + 1):
            self._wait_for(len(self._orders) * kill // (times + 1))
            abandoned = self._kill_amid_charges()
            self._progress.say(f"worker {kill} killed while it charged orders {', '.join(abandoned)}")
            self._journals.look()
            self._worker = self._shop.start_worker(self._processes)
            self._workers += 1

    def finish(self) -> None:
        """Wait for the last order."""
        self._wait_for(len(self._orders))

    def check_the_books(self) -> list[str]:
        """Print the table, and return what is wrong."""
        self._progress.close()
        self._stage.kill(self._worker)
        self._journals.look()
        ledgers = {supplier: self._shop.report(supplier) for supplier in SUPPLIERS}
        rows = [self._row(order, ledgers) for order in self._results]
        print(f"\n{render(rows)}\n")
        unpaid = [f"order {row.order} was charged {row.charges} times" for row in rows if row.charges != 1]
        states = {order: result.state for order, result in self._results.items()}
        failed = [f"order {order} ended as {state}" for order, state in states.items() if state != SUCCESS]
        return unpaid + failed

    def close(self) -> None:
        """Let go of the results while there is a server: each of them is subscribed to, and unsubscribes."""
        self._results.clear()

    def _row(self, order: str, ledgers: dict[str, Report]) -> Row:
        """What the suppliers were asked, next to what the journal says."""
        task_id = self._results[order].id
        return Row(
            order,
            attempts=self._journals.attempts(task_id),
            steps_executed=sum(ledger[order]["requests"] for ledger in ledgers.values() if order in ledger),
            steps_replayed=self._journals.replayed(task_id),
            charges=ledgers["charges"].get(order, {}).get("booked", 0),
        )

    def _wait_for(self, orders: int) -> None:
        self._stage.wait_until(lambda: self._show_progress() >= orders)

    def _show_progress(self) -> int:
        done = sum(result.ready() for result in self._results.values())
        self._progress.show(done, f"worker {self._workers} at work")
        return done

    def _kill_amid_charges(self) -> list[str]:
        """The gateway finishes the charges that it is at, though nobody is left to hear its answers."""
        in_flight: list[str] = []

        def charging() -> bool:
            self._show_progress()
            charges = self._shop.report("charges")
            in_flight[:] = (order for order, counts in charges.items() if counts["in_flight"])
            return len(in_flight) >= min(2, self._processes, len(self._orders))

        self._stage.wait_until(charging)
        self._stage.kill(self._worker)
        return in_flight


def main() -> int:
    """The exit status."""
    options = parse_options()
    directory = Path(tempfile.mkdtemp(prefix="celery-durable-demo-"))
    try:
        with closing(Stage(PROJECT, directory, options.timeout)) as stage:
            shop = Shop(stage, options.redis_url, delay=options.delay)
            with closing(Demo(stage, shop, options)) as demo:
                problems = play(demo, options.kills)
    except Interrupted as interrupted:
        shutil.rmtree(directory)
        print("\ninterrupted; nothing is left running")
        return 128 + int(interrupted.args[0])
    except NoServerError as error:
        shutil.rmtree(directory)
        print(error, file=sys.stderr)
        return 2
    except (DemoFailedError, RedisError, URLError) as failure:
        problems = [str(failure)]
    if problems:
        print("\n".join(problems), f"the logs are in {directory}", sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    print(f"All {options.orders} orders succeeded, and each was charged exactly once.")
    return 0


def play(demo: Demo, kills: int) -> list[str]:
    """What went wrong. The books are checked in any case."""
    problems = []
    try:
        demo.send()
        demo.kill_workers(kills)
        demo.finish()
    except DemoFailedError as failure:
        problems.append(str(failure))
    try:
        problems += demo.check_the_books()
    except (RedisError, URLError) as failure:
        problems.append(f"the books cannot be read: {failure}")
    return problems


def parse_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m example_app.demo", description=__doc__)
    add = parser.add_argument
    add("--orders", type=int, default=20)
    add("--kills", type=int, default=2, help="how many workers are killed")
    add("--processes", type=int, default=4, help="of each worker")
    add("--delay", type=float, default=0.6, help="seconds that a supplier takes on average")
    add("--timeout", type=float, default=110.0, help="seconds after which the demo gives up")
    add(
        "--redis-url",
        default=os.environ.get("DEMO_REDIS_URL"),
        help="an empty database to use instead of starting a server (or the variable DEMO_REDIS_URL)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
