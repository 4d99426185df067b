"""Signals around steps, for libraries that keep something per thread. They work like Celery's own signals.

``step_prerun`` and ``step_postrun`` are sent around an execution of a step that does not run in the thread of its task:
sync steps of ``async def`` tasks, async steps, and steps with a timeout if the pool runs threads. They are sent in the
thread that executes the step. For all other steps use Celery's ``task_prerun`` and ``task_postrun``. The database
connections of Django need no signal. In eager mode, and if a task is called as a function, none is sent.

    from celery_durable.signals import step_postrun

    @step_postrun.connect
    def give_the_session_back(**_):
        Session.remove()  # SQLAlchemy's scoped_session, which keeps one per thread

A receiver gets ``sender`` (the name of the task), ``task_id`` and ``name`` (of the step). If it raises an
error, Celery logs this, and nothing changes. An async step runs on the event loop: a receiver must not block it.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

from celery_durable.seams import celery as seam

_FACTS = ("task_id", "name")

step_prerun = Signal(name="step_prerun", providing_args=_FACTS)
"""The step is about to be executed in this thread."""
step_postrun = Signal(name="step_postrun", providing_args=_FACTS)
"""The step was executed in this thread. It may have failed."""


def has_receivers() -> bool:
    """Whether one of the two signals has a receiver."""
    return seam.has_receivers(step_prerun) or seam.has_receivers(step_postrun)
