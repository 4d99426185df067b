"""One table."""

from django.db import models


class Order(models.Model):
    """What somebody has bought."""

    item = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.item
