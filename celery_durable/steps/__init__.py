"""How the body of a task is executed and replayed. It knows neither Celery nor Redis."""
