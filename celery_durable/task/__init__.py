"""A durable task under Celery: how it is made, how its body is run, and its retries."""
