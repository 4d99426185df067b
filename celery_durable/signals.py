"""Signals of runs and steps. They work like Celery's own signals: connect a function to one of them.

    from celery_durable.signals import run_failed

    @run_failed.connect
    def call_somebody(run, **_):
        page(f"{run.task} {run.id}: {run.error}")

A receiver gets ``sender`` (the name of the task), ``run`` (a :class:`~celery_durable.records.Run`), and of a step also
``step`` (a :class:`~celery_durable.records.StepRecord`). With ``connect(sender="shop.order")`` it hears of one task.

=================== ==================================================================================================
``run_started``     the first attempt of a run has begun
``run_resumed``     a later attempt has begun: after a wait, a retry, the death of a process, or a Retry
``run_suspended``   the run waits, and only its journal keeps this wait: a sleep, a pause (its ``state`` is PAUSED), or
                    a retry that is too far away for the broker (``durable_max_broker_delay``). No signal tells of a
                    retry that the broker keeps
``run_stalled``     an attempt has ended because its code does not fit the journal. Each such attempt sends it
``run_succeeded``   the run has ended well
``run_failed``      the run has failed
``run_parked``      it has failed because too many attempts in a row died. ``run_failed`` follows
``run_cancelled``   somebody has cancelled the run, or has revoked its task
``attempt_fenced``  an attempt has found that another one has its run, or that the run has ended elsewhere
``step_succeeded``  the result of a step is recorded
``step_failed``     a step has failed for good: each replay will raise this failure
=================== ==================================================================================================

Each is sent once, when the journal has recorded what it tells of, by the process that has done this: mostly by the one
that runs the task; by the main process of a worker if a task is revoked, or meets its hard time limit. If the process
dies in between, the signal is not sent. A replay sends none. Nor does a run that its caller executes: in eager mode, or
a task that is called as a function.

``run`` says the new state. In the process of an attempt, it has only the attempt that sends the signal, no steps, no
actions, no attributes, no lease and no ``restarted_from``: nothing is asked for it.

If a receiver raises an error, Celery logs this, and nothing changes. A slow receiver holds up its task. If the task is
an ``async def``, the receivers of ``step_*`` are called on the event loop: they must not block.

``step_prerun`` and ``step_postrun`` are for libraries that keep something per thread. They are sent around an execution
of a step that does not run in the thread of its task: sync steps of ``async def`` tasks, async steps, and steps with a
timeout if the pool runs threads. They are sent in the thread that executes the step. For all other steps use Celery's
``task_prerun`` and ``task_postrun``. The database connections of Django need no signal. In eager mode, and if a task is
called as a function, none is sent.

    from celery_durable.signals import step_postrun

    @step_postrun.connect
    def give_the_session_back(**_):
        Session.remove()  # SQLAlchemy's scoped_session, which keeps one per thread

A receiver of these two gets ``sender`` (the name of the task), ``task_id`` and ``name`` (of the step).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.dispatch import Signal

from celery_durable import happenings
from celery_durable.happenings import Happening
from celery_durable.seams import celery as seam

if TYPE_CHECKING:
    from celery_durable.records import Run, StepRecord

_FACTS = ("task_id", "name")

step_prerun = Signal(name="step_prerun", providing_args=_FACTS)
"""The step is about to be executed in this thread."""
step_postrun = Signal(name="step_postrun", providing_args=_FACTS)
"""The step was executed in this thread. It may have failed."""


def has_receivers() -> bool:
    """Whether one of these two signals has a receiver."""
    return seam.has_receivers(step_prerun) or seam.has_receivers(step_postrun)


class _OfHappening(Signal):
    """A signal of what has happened. Nothing is made for it until somebody connects a receiver."""

    def __init__(self, happening: str, *facts: str) -> None:
        super().__init__(name=happening, providing_args=facts)
        self._happening = happening
        # Each sender has its receivers looked up once. (Celery's own cache would hold senders weakly. These are texts.)
        self.use_caching = True

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        happenings.observe(self.tell, {self._happening})
        return super().connect(*args, **kwargs)

    def tell(self, _happening: str, run: Run, step: StepRecord | None) -> None:
        """Send it: a signal with a receiver is an observer."""
        answers = self.send(run.task, run=run) if step is None else self.send(run.task, run=run, step=step)
        for _, answer in answers:
            if isinstance(answer, SoftTimeLimitExceeded):
                # It was meant for the task. Celery has taken it for an error of the receiver.
                raise answer


SIGNALS: dict[str, _OfHappening] = {}
"""What may happen → its signal."""


def _signal(name: str, *facts: str) -> _OfHappening:
    SIGNALS[name] = signal = _OfHappening(name, *facts)
    return signal


run_started = _signal(Happening.RUN_STARTED, "run")
run_resumed = _signal(Happening.RUN_RESUMED, "run")
run_suspended = _signal(Happening.RUN_SUSPENDED, "run")
run_stalled = _signal(Happening.RUN_STALLED, "run")
run_succeeded = _signal(Happening.RUN_SUCCEEDED, "run")
run_failed = _signal(Happening.RUN_FAILED, "run")
run_parked = _signal(Happening.RUN_PARKED, "run")
run_cancelled = _signal(Happening.RUN_CANCELLED, "run")
attempt_fenced = _signal(Happening.ATTEMPT_FENCED, "run")
step_succeeded = _signal(Happening.STEP_SUCCEEDED, "run", "step")
step_failed = _signal(Happening.STEP_FAILED, "run", "step")
