"""What a user writes to have durable runs in Flower."""

from celery_durable.flower import install

install()
