"""The shop's calls to the world outside: each of these functions is the action of one durable step."""

import json
from os import environ
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from celery_durable import TerminalError, current_step
from example_app.models import Booking, Order

GATEWAY_URL = environ.get("GATEWAY_URL", "http://127.0.0.1:8765")
FINAL = (402, 422)


# Best practice 2, keep actions small: one request each. A step is recorded as a whole, so whatever an action
# had done before it failed would be done again.
def reserve_stock(order: Order) -> Booking:
    """Set the goods aside."""
    return Booking.model_validate(_send("POST", "/reservations", order))


def charge_card(order: Order) -> Booking:
    """Take the money."""
    return Booking.model_validate(_send("POST", "/charges", order))


def ship(order: Order) -> Booking:
    """Hand the goods to the carrier."""
    return Booking.model_validate(_send("POST", "/shipments", order))


def release_stock(order: Order) -> None:
    """Undo `reserve_stock`; undoing nothing is fine, as is undoing twice."""
    _send("DELETE", f"/reservations/{order.id}", order)


def refund_card(order: Order) -> None:
    """Undo `charge_card`, likewise."""
    _send("DELETE", f"/charges/{order.id}", order)


def _send(method: str, path: str, order: Order) -> object:
    request = Request(  # noqa: S310 - the URL is configuration
        GATEWAY_URL + path,
        data=order.model_dump_json().encode(),
        method=method,
        headers={
            "Content-Type": "application/json",
            # The same for every execution of this step of this task, and for no other. A worker may die after
            # the charge and before its record: by the key the supplier sees that it has the request already.
            "Idempotency-Key": str(current_step().idempotency_key),
        },
    )
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        # Best practice 4, tell errors apart. Trying again cannot help a declined card: that ends the step for
        # good, and `except TerminalError` in the task sees it. Everything else is retried.
        if error.code in FINAL:
            reason = json.load(error)["error"]
            raise TerminalError(f"order {order.id}: {reason}", status_code=error.code) from error
        raise
