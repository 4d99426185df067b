"""The checkout: reserve, charge, ship; and when one of them is refused for good, undo what went before."""

from collections.abc import Callable
from datetime import timedelta

from celery.result import AsyncResult

from celery_durable import DurableContext, RunOptions, TerminalError, durable_task
from example_app.models import Order, Receipt
from example_app.suppliers import charge_card, refund_card, release_stock, reserve_stock, ship

# Best practice 7, limit retries by what is at stake. A customer waits for the charge: give up after 12 executions,
# within about 4 minutes. A carrier that is closed over night costs only patience. A refund has to happen: no limit.
CHARGE = RunOptions(
    max_attempts=12, initial_retry_interval=timedelta(milliseconds=200), max_retry_interval=timedelta(minutes=1)
)
SHIPPING = RunOptions(max_duration=timedelta(hours=12), max_retry_interval=timedelta(minutes=5))
UNDO = RunOptions(max_retry_interval=timedelta(minutes=1))

Compensation = tuple[str, Callable[[Order], None]]


@durable_task
def checkout(ctx: DurableContext, order: Order) -> Receipt:
    """Sell *order*. Whatever happens to the worker meanwhile, the card is charged once or not at all."""
    undo: list[Compensation] = []
    try:
        # Best practice 1, wrap whatever touches the world. Every attempt runs this body from its first line,
        # and the steps that have finished answer from the journal.
        # Best practice 3, name the steps: logs, traces and the journal speak of them by these names.
        undo.append(("release stock", release_stock))
        reservation = ctx.run("reserve stock", reserve_stock, order)

        # How to undo it is noted before it is done: a charge that failed may have reached the bank.
        undo.append(("refund card", refund_card))
        # Best practice 6, give an action its arguments and not the context: steps do not nest.
        charge = ctx.run("charge card", charge_card, CHARGE, order)

        parcel = ctx.run("ship", ship, SHIPPING, order)
    except TerminalError:
        for name, action in reversed(undo):
            ctx.run(name, action, UNDO, order)
        raise

    return Receipt(
        # Best practice 5, take ids, chance and time from the context: they are the same on every attempt.
        number=ctx.uuid(),
        lucky=ctx.random().random() < 0.05,
        issued_at=ctx.now(),
        order=order.id,
        reservation=reservation.id,
        charge=charge.id,
        parcel=parcel.id,
    )


def place(order: Order) -> AsyncResult[Receipt]:
    """Send the checkout. Its task id is made of the order's id: an order sent twice is charged once."""
    return checkout.apply_async((order,), task_id=f"checkout-{order.id}")
