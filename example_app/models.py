"""What the shop passes around: into tasks, out of steps, and through the journal."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field


class Order(BaseModel):
    """What a customer wants, and how it is paid.

    Arguments of a task stand as text in the broker, in the journal and in Flower. So the card is named by a token of
    the payment provider: nobody can pay with that but the shop.
    """

    id: str = Field(pattern=r"^[\w-]+$")  # it becomes part of a task id and of URLs
    item: str = "espresso machine"
    quantity: int = Field(default=1, ge=1)
    amount_cents: int = Field(default=24_900, gt=0)
    payment_method: str = "pm_card_visa"


class Booking(BaseModel):
    """What each supplier answers: the stock set aside, the charge, or the parcel."""

    id: str
    order: str


class Receipt(BaseModel):
    """What the customer gets to see."""

    number: UUID
    order: str
    reservation: str
    charge: str
    parcel: str
    lucky: bool
    issued_at: datetime
