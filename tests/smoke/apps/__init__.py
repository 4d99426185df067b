"""Celery apps for workers to run; their broker and result backend come from the variables that Celery reads itself."""
