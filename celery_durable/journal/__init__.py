"""What the journal of a run says, and what an attempt asks of it. Knows neither Celery nor Redis."""
