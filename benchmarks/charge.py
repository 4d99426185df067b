"""The step that is measured: trivial, with a result of about 100 bytes, so that what counts is recording it."""

from typing import Any


def charge(number: int) -> dict[str, Any]:
    """What a payment gateway might answer."""
    return {
        "ok": True,
        "order_id": f"ord_{number:08}",
        "amount": 1299,
        "currency": "EUR",
        "status": "captured",
        "attempt": 1,
    }


async def charge_async(number: int) -> dict[str, Any]:
    """The same from an async client."""
    return charge(number)


def kilobyte(number: int) -> str:
    """A result of 1 KB."""
    return f"{number:08}".ljust(1000, "x")
