"""A small shop on celery-durable: copy from here. `celery -A example_app worker -l INFO` runs it."""

from example_app.app import app

__all__ = ["app"]
