"""Arguments that are Pydantic models. The first attempt of a run validates them; later attempts get the same values.

Celery validates them each time that it calls the body (``pydantic=True``). A later validation may refuse what the first
one has accepted: a future date has passed, a file is gone. So the journal keeps the accepted values, with its first
entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from celery_durable.values import codec
from celery_durable.values.unvalidated import declared

Accepted = list[Any]
"""``[metadata, text]`` of a model, or None of one that cannot be recorded."""


class Arguments:
    """The arguments of one attempt: whether they fitted, and the models among them, in their order."""

    # Few tasks have models. So these are values of the class until there is another one.
    _attempt: Any = None
    _accepted: Sequence[Accepted | None] = ()
    _next = 0
    have_fitted = False
    """Whether they fitted the function, and it has begun."""

    def begin(self, attempt: Any) -> None:
        """The run is open. With ``base=DurableTask`` this may come later than the validation."""
        self._attempt = attempt
        if self._accepted and attempt.state.arguments is None:
            self._keep()

    def next(self, validate: Callable[[Any, Any], Any], model: Any, value: Any) -> Any:
        """The next argument: as the first attempt accepted it, else as *validate* gives it."""
        number, self._next = self._next, self._next + 1
        if number == 0 and self._attempt is not None:
            self._accepted = json.loads(self._attempt.state.arguments or "[]")
        if number < len(self._accepted) and self._accepted[number] is not None:
            metadata, text = self._accepted[number]  # type: ignore[misc]
            with suppress(Exception):  # the model has changed, and cannot read the old value
                return codec.decode(text, metadata, model)
        try:
            accepted = validate(model, value)
        except Exception:
            if self._attempt is None or not self._attempt.state.has_begun:
                raise
            # The run has begun, so an earlier attempt has accepted this value. It is not recorded, because version 0.1
            # has begun the run, or because it cannot be recorded.
            return validate(_Lenient(model), value)
        if number >= len(self._accepted):
            self._accepted = [*self._accepted, _recorded(accepted, model)]
            if self._attempt is not None:
                self._keep()
        return accepted

    def _keep(self) -> None:
        self._attempt.outbox.staged[self._attempt.state.arguments_field] = json.dumps(self._accepted)


def _recorded(argument: Any, model: Any) -> Accepted | None:
    try:
        encoded = codec.encode(argument, model)
    except Exception:  # it may contain a secret, which cannot be recorded
        return None
    return [encoded.metadata, encoded.text]


class _Lenient:
    """Stands for a model. Its validators run, but what they refuse is accepted."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def model_validate(self, value: Any, *, strict: bool | None = None, context: Any = None) -> Any:
        lenient = declared(self._model).lenient
        if lenient is None:
            return self._model.model_validate(value, strict=strict, context=context)
        return lenient.validate_python(value, strict=strict, context=context)
