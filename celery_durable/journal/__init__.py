"""What the journal of a run says, and what an attempt asks of it. It knows neither Celery nor Redis."""
