"""What belongs to a Celery app: its ``durable_*`` settings, the address of its Redis, and the connections to it."""
