"""The Celery app; whatever differs between machines comes from the environment."""

from os import environ

from celery import Celery

REDIS_URL = environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery(
    "example_app",
    broker=REDIS_URL,
    backend=REDIS_URL,  # the journals live here too, unless durable_redis_url names another place
    include=["example_app.checkout", "example_app.assistant"],
)

app.conf.update(
    # A worker that is killed hands nothing back. Redis gives its messages to another once they have been out
    # for visibility_timeout seconds, and workers look for such messages at every interval; Celery's own 1 h
    # and 100 s are a long time for a customer. A plain task that runs longer than the first is started twice:
    # raise it if you have any. A durable task is safe from that.
    broker_transport_options={
        "visibility_timeout": int(environ.get("VISIBILITY_TIMEOUT", "60")),
        "unacked_restore_interval": int(environ.get("RESTORE_INTERVAL", "10")),
        "unacked_restore_throttle": 1,
    },
    # For so many seconds after its last sign of life a worker process keeps others off its task.
    durable_lease=float(environ.get("DURABLE_LEASE", "30")),
    # A process that is busy holds no second message that an idle worker could take.
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # Another app may use this Redis, too, and its workers do not know these tasks.
    task_default_queue="example_app",
    # What Flower shows comes from these.
    task_track_started=True,
    task_send_sent_event=True,
    worker_send_task_events=True,
    result_extended=True,
)
