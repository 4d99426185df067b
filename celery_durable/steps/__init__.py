"""How the body of a task is executed and replayed. Knows neither Celery nor Redis."""
