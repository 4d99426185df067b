"""What belongs to a Celery app: where its Redis is, and the connections to it."""
