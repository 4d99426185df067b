"""The end of an attempt is carried out: the journal, the result backend and Celery are told."""
