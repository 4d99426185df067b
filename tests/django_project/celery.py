"""The app of the project, as Celery's documentation has it."""

from celery import Celery

app = Celery("django_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
