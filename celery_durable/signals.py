"""Signals of Celery's kind, for what a process keeps by thread.

``step_prerun`` and ``step_postrun`` are sent around each execution of a step that happens outside of the thread in
which Celery runs the task: sync steps of ``async def`` tasks, async steps, steps with a timeout where the pool runs
threads. They are sent in the thread that executes the step; for all other steps there are Celery's ``task_prerun`` and
``task_postrun``. Database connections of Django's are looked after without them. In eager mode, and where a task is
called as a function, none is sent.

    from celery_durable.signals import step_postrun

    @step_postrun.connect
    def give_the_session_back(**_):
        Session.remove()  # SQLAlchemy's scoped_session, which keeps one by thread

A receiver gets ``sender`` (the name of the task), ``task_id`` and ``name`` (of the step). What it raises is logged by
Celery, and changes nothing. An async step is executed on the event loop, which a receiver must not hold up.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

from celery_durable.seams import celery as seam

_FACTS = ("task_id", "name")

step_prerun = Signal(name="step_prerun", providing_args=_FACTS)
"""The step is about to be executed in this thread."""
step_postrun = Signal(name="step_postrun", providing_args=_FACTS)
"""It has been, whether it has failed or not."""


def has_receivers() -> bool:
    """Whether somebody listens to one of the two."""
    return seam.has_receivers(step_prerun) or seam.has_receivers(step_postrun)
