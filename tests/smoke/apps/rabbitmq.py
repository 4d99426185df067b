"""Apps on RabbitMQ, one per kind of queue, with the tasks of other modules; `durable_task` belongs to every app."""

from typing import Any

from celery import Celery

from tests.smoke.apps import cancellation, crashes, waits  # noqa: F401


def app_on(kind: str, **conf: Any) -> Celery:
    app = Celery(kind, set_as_current=False)
    app.conf.update(durable_lease=2, task_default_queue=kind, **conf)
    return app


QUORUM = {"task_default_queue_type": "quorum", "broker_transport_options": {"confirm_publish": True}}

classic = app_on("classic")
quorum = app_on("quorum", **QUORUM)
"""On Celery's default exchange, a direct one: workers keep what has a countdown."""
delayed = app_on("delayed", **QUORUM, task_default_exchange="delayed", task_default_exchange_type="topic")
"""On a topic exchange: the broker keeps what has a countdown (Celery's native delayed delivery)."""
