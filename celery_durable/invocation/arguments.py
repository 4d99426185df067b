"""Arguments that are Pydantic models: validated by the first attempt of a run, given back as accepted by later ones.

Celery validates them each time that it calls the body (``pydantic=True``), and the verdict may be another one by then:
a date that was to come has passed, a file is gone. What was accepted is kept in the journal, with its first entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery_durable.values import codec
from celery_durable.values.unvalidated import declared

Accepted = list[Any]
"""``[metadata, text]`` of a model, or None of one that cannot be recorded."""


class Arguments:
    """The models among the arguments of one attempt, in their order."""

    def __init__(self) -> None:
        self._attempt: Any = None
        self._accepted: list[Accepted | None] = []
        self._next = 0

    def begin(self, attempt: Any) -> None:
        """The run is open; in plain tasks not before the body, when these have been validated."""
        self._attempt = attempt
        recorded = attempt.state.arguments
        if recorded is not None:
            self._accepted = json.loads(recorded)
        elif self._accepted:
            self._keep()

    def next(self, validate: Callable[[Any, Any], Any], model: Any, value: Any) -> Any:
        number, self._next = self._next, self._next + 1
        if number < len(self._accepted) and self._accepted[number] is not None:
            metadata, text = self._accepted[number]  # type: ignore[misc]
            with suppress(Exception):  # the model has changed, and does not know how to read the old one
                return codec.decode(text, metadata, model)
        try:
            accepted = validate(model, value)
        except Exception:
            if self._attempt is None or not self._attempt.state.has_begun:
                raise
            # Begun by version 0.1, or it cannot be recorded: what is refused now was accepted then.
            return validate(_Lenient(model), value)
        if number >= len(self._accepted):
            self._accepted.append(_recorded(accepted, model))
            if self._attempt is not None:
                self._keep()
        return accepted

    def _keep(self) -> None:
        self._attempt.keep_arguments(json.dumps(self._accepted))


def _recorded(argument: Any, model: Any) -> Accepted | None:
    try:
        encoded = codec.encode(argument, model)
    except Exception:  # a secret in it, say
        return None
    return [encoded.metadata, encoded.text]


class _Lenient:
    """Stands for a model whose validators' refusals are not heeded."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def model_validate(self, value: Any, *, strict: bool | None = None, context: Any = None) -> Any:
        lenient = declared(self._model).lenient
        if lenient is None:
            return self._model.model_validate(value, strict=strict, context=context)
        return lenient.validate_python(value, strict=strict, context=context)
