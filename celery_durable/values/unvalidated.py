"""A declared type, and how its recorded values are read without its validators: a value that was valid stays valid.

What validators say may depend on the clock (``FutureDatetime``), on a disk (``FilePath``), or on a limit that has
changed since.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticOmit, PydanticUseDefault, SchemaValidator

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LIMITS = frozenset(
    {
        "gt", "ge", "lt", "le", "multiple_of", "allow_inf_nan", "max_digits", "decimal_places",
        "min_length", "max_length", "pattern", "strip_whitespace", "to_lower", "to_upper",
        "now_op", "now_utc_offset", "tz_constraint",
        "str_min_length", "str_max_length", "str_strip_whitespace", "str_to_lower", "str_to_upper",
    }
)  # fmt: skip
"""Keys of a core schema, or of its config, that refuse or change a value for more than its type."""

_OPAQUE = frozenset(
    {
        "metadata", "serialization", "computed_fields", "cls", "function",
        "default", "default_factory", "expected", "members", "missing",
    }
)  # fmt: skip
"""Keys of a core schema that contain no schemas."""

_UNSTABLE = _OPAQUE - {"cls"} | {"default_factory_takes_data", "sub_type"}
"""Keys of a core schema that say nothing about how the data is laid out."""

Schema = Any
_Rewrite = Callable[[Schema], Schema]


class Declared:
    """A type that Pydantic knows, with the ways to read its values."""

    def __init__(self, hint: Any) -> None:
        from pydantic import TypeAdapter  # late: half of the package's import time, and only a typed step needs it

        self.adapter: TypeAdapter[Any] = TypeAdapter(hint)

    @cached_property
    def bare(self) -> SchemaValidator | None:
        """A validator that runs no user code; None if Pydantic cannot build one."""
        return self._validator(_bare)

    @cached_property
    def lenient(self) -> SchemaValidator | None:
        """A validator that lets the user's validators change a value, and ignores it if they refuse one."""
        return self._validator(_lenient)

    @cached_property
    def shape(self) -> str:
        """A hash of how the data is laid out, the same in each process. Validators and limits have no part in it."""
        text = _told(_rewritten(self.adapter.core_schema, _bare))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def _validator(self, function: _Rewrite) -> SchemaValidator | None:
        try:
            schema = _rewritten(self.adapter.core_schema, function)
            return _build(schema)
        except Exception:
            return None


_cached = lru_cache(maxsize=1024)(Declared)


def declared(hint: Any) -> Declared:
    """A type as Pydantic knows it. It is kept, because to build it costs a hundred times as much as to use it."""
    try:
        return _cached(hint)
    except TypeError:  # an unhashable hint, such as Annotated[int, [...]]
        return Declared(hint)


def _build(schema: Schema) -> SchemaValidator:
    # The models in it have validators already, which must not be used: they are what this is to avoid.
    if "_use_prebuilt" in (SchemaValidator.__text_signature__ or ""):
        return SchemaValidator(schema, _use_prebuilt=False)  # type: ignore[call-arg, unused-ignore]
    with _building:
        classes = [kind for kind in _classes_in(schema) if vars(kind).get("__pydantic_complete__")]
        try:
            for kind in classes:
                kind.__pydantic_complete__ = False
            return SchemaValidator(schema)
        finally:
            for kind in classes:
                kind.__pydantic_complete__ = True


_building = Lock()


def _classes_in(schema: Schema) -> Iterator[Any]:
    """The models and dataclasses in a core schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("model", "dataclass"):
            yield schema["cls"]
        schema = [part for name, part in schema.items() if name not in _OPAQUE]
    if isinstance(schema, (list, tuple)):
        for part in schema:
            yield from _classes_in(part)


# -- core schemas ------------------------------------------------------------------------------------------------------


def _rewritten(schema: Schema, rewrite: _Rewrite) -> Schema:
    """A core schema without limits; *rewrite* makes its other parts."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_rewritten(part, rewrite) for part in schema)
    if not isinstance(schema, dict):
        return schema
    is_schema = isinstance(schema.get("type"), str)
    parts = {
        name: part if is_schema and name in _OPAQUE else _rewritten(part, rewrite)
        for name, part in schema.items()
        if not (is_schema and name in _LIMITS)
    }
    if not is_schema:
        return parts  # fields by their names, for example
    if isinstance(config := parts.get("config"), dict):
        parts["config"] = {name: part for name, part in config.items() if name not in _LIMITS}
    if parts["type"] in ("decimal", "float"):
        parts["allow_inf_nan"] = True
    return rewrite(parts)


def _bare(schema: Schema) -> Schema:
    """A core schema without user code."""
    kind = schema["type"]
    if kind.startswith("function-") and not _is_needed(schema["function"]):
        inner = {"type": "any"} if kind == "function-plain" else schema["schema"]
        return {**inner, "ref": schema["ref"]} if "ref" in schema and "ref" not in inner else inner
    if kind == "model":
        schema["custom_init"] = False
        if not _is_pydantics(getattr(schema["cls"], "model_post_init", None)):
            schema.pop("post_init", None)
    if kind == "dataclass":
        schema["post_init"] = False
    for part in (schema, schema.get("config") or {}):
        for name in ("extra_behavior", "extra_fields_behavior"):
            if part.get(name) == "forbid":
                part[name] = "ignore"
    return schema


def _lenient(schema: Schema) -> Schema:
    """A core schema with user code whose refusals are ignored."""
    kind = schema["type"]
    if kind.startswith("function-") and not _is_pydantics(schema["function"]["function"]):
        function = schema["function"]["function"]
        heedless = _wrap_heedless if kind == "function-wrap" else _heedless
        schema["function"] = {**schema["function"], "function": partial(heedless, function)}
    elif kind.startswith("function-"):
        return _bare(schema)
    return schema


def _heedless(function: Callable[..., Any], value: Any, *info: Any) -> Any:
    try:
        return function(value, *info)
    except (PydanticOmit, PydanticUseDefault):
        raise
    except Exception:
        return value


def _wrap_heedless(function: Callable[..., Any], value: Any, handler: Callable[[Any], Any], *info: Any) -> Any:
    try:
        return function(value, handler, *info)
    except (PydanticOmit, PydanticUseDefault):
        raise
    except Exception:
        return handler(value)


def _is_needed(about: dict[str, Any]) -> bool:
    """Whether a function is Pydantic's own and makes a value that JSON does not have (a path, an address)."""
    function = about["function"]
    looks_at_the_disk = getattr(function, "__qualname__", "").startswith("PathType.")
    return _is_pydantics(function) and not looks_at_the_disk


def _is_pydantics(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    module = getattr(inspect.unwrap(function) if callable(function) else function, "__module__", None) or ""
    return module.partition(".")[0] in ("pydantic", "pydantic_core")


def _told(schema: Schema) -> str:
    return " ".join(_words(schema))


def _words(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        is_schema = isinstance(part.get("type"), str)
        for name in sorted(map(str, part)):
            if not (is_schema and name in _UNSTABLE) and name in part:
                yield f"{name}("
                yield from _words(part[name])
                yield ")"
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _words(item)
            yield ","
    elif isinstance(part, str):
        yield re.sub(r":\d+", "", part)  # a reference to a class contains its address in memory
    elif isinstance(part, (bool, int, float, type(None))):
        yield str(part)
    else:
        yield getattr(part, "__qualname__", type(part).__qualname__)
