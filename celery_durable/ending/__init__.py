"""Carries out the end of an attempt: tells the journal, the result backend and Celery."""
