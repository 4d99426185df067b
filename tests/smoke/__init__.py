"""The ring of tests with real `celery worker` processes, which get killed."""
