"""A durable task under Celery, from the call of its body to what Celery is told of its end."""
