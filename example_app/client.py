"""The shop's counter: `python -m example_app.client order` sends a task and waits for what becomes of it."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import uuid4

from celery import exceptions
from celery.result import AsyncResult
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from celery_durable import DurableError
from example_app.app import REDIS_URL, app
from example_app.assistant import ask
from example_app.checkout import place
from example_app.gateway import Gateway
from example_app.models import Order, Receipt
from example_app.suppliers import GATEWAY_URL

SECONDS_BEFORE_HINT = 10.0


def buy(options: argparse.Namespace) -> None:
    """Place an order, and show the receipt and what was charged."""
    order = Order(id=options.id, quantity=options.quantity)
    with gateway_if_none_runs():
        receipt = Receipt.model_validate(wait_for(place(order)))
        print(receipt.model_dump_json(indent=2))
        print_charges(order.id)


def ask_assistant(options: argparse.Namespace) -> None:
    """Put a question to the assistant."""
    print(wait_for(ask.delay(options.question)))


def show_charges(options: argparse.Namespace) -> None:
    """Ask the card processor."""
    print_charges(options.order)


def retry(options: argparse.Namespace) -> None:
    """Let a failed task go on from its journal; Flower's API sends the same."""
    print(wait_for(app.send_task("celery_durable.retry", args=[options.task_id])))


def wait_for(result: AsyncResult[object]) -> object:
    """The task's result, with a word for those who wait in vain."""
    print(f"task {result.id} is sent", file=sys.stderr)
    try:
        return result.get(timeout=SECONDS_BEFORE_HINT)
    except exceptions.TimeoutError:
        print("still waiting: does a worker run?  celery -A example_app worker -l INFO", file=sys.stderr)
    return result.get()


@contextmanager
def gateway_if_none_runs() -> Iterator[None]:
    """Be the gateway for a while, so that an order needs nothing but Redis and a worker."""
    url = urlsplit(GATEWAY_URL)
    try:
        gateway = Gateway((url.hostname or "127.0.0.1", url.port or 80), delay=0.2)
    except OSError:  # the address is in use, so one runs; or it is not this machine's, and not ours to serve
        yield
        return
    print(f"no gateway runs at {GATEWAY_URL}: this command stands in while it waits", file=sys.stderr)
    with gateway:
        Thread(target=gateway.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            gateway.shutdown()


def print_charges(order: str | None) -> None:
    """What the card processor has charged, for one order or for all."""
    with urlopen(f"{GATEWAY_URL}/charges", timeout=10) as answer:  # noqa: S310 - the URL is configuration
        report = json.load(answer)
    asked = report if order is None else {order: report.get(order, {})}
    for known, counts in asked.items():
        facts = ", ".join(f"{count.replace('_', ' ')} {number}" for count, number in counts.items())
        print(f"charges for order {known}:", facts or "this gateway knows of none")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """One subcommand, and what it is told."""
    parser = argparse.ArgumentParser(prog="python -m example_app.client", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser(
        "order",
        help="buy espresso machines",
        epilog='An id that contains "flaky", "declined" or "unshippable" makes the suppliers act like that.',
    )
    command.add_argument("--id", default=uuid4().hex[:8], help="default: a new one")
    command.add_argument("--quantity", type=int, default=1)
    command.set_defaults(run=buy)

    command = commands.add_parser("ask", help="ask the slow assistant")
    command.add_argument("question", nargs="?", default="What is durable execution?")
    command.set_defaults(run=ask_assistant)

    command = commands.add_parser("charges", help="what the card processor has charged")
    command.add_argument("order", nargs="?")
    command.set_defaults(run=show_charges)

    command = commands.add_parser("retry", help="let a failed task go on from its journal")
    command.add_argument("task_id")
    command.set_defaults(run=retry)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = parse(arguments)
    try:
        Redis.from_url(REDIS_URL).ping()  # Celery would look for it for a while before it says so
        options.run(options)
    except DurableError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except ValidationError as error:
        print(error, file=sys.stderr)
    except RedisError as error:
        print(f"no Redis at {REDIS_URL} (the variable REDIS_URL says where): {error}", file=sys.stderr)
    except URLError as error:
        print(
            f"no gateway at {GATEWAY_URL} (the variable GATEWAY_URL says where): {error.reason}\n"
            "start one: python -m example_app.gateway",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("not waiting any longer; the task goes on", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
