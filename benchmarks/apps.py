"""What the Celery apps whose workers are measured have in common."""

from celery import Celery


def configure(app: Celery, url: str, queue: str) -> Celery:
    """The same broker, result backend and settings for every app; each has a queue and a worker of its own."""
    app.conf.update(
        broker_url=url,
        result_backend=url,
        task_default_queue=queue,
        result_expires=600,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return app
