"""The end of an attempt, carried out: what the journal, the result backend and Celery are told."""
