"""Nested dicts, as JSON has them, into configurations, with every key and type checked."""

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import UsageError


def _is(value: Any, kind: type) -> bool:
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a dict, nested; an unknown key is an error that lists the known ones."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UsageError(f"unknown key {where}{unknown[0]}; known are {', '.join(sorted(hints))}")
    return kind(**{name: _value(hints[name], value, f"{where}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value checked against the type of its field; dicts and lists become what the field holds."""
    arguments = get_args(hint)
    nested: Any = next((part for part in (hint, *arguments) if dataclasses.is_dataclass(part)), None)
    if nested is not None:
        if value is None and type(None) in arguments:
            return None
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be an object, got {value!r}")
        return build(nested, value, f"{where}.")
    if get_origin(hint) is tuple:
        item_type = arguments[0]
        if not isinstance(value, list | tuple) or not all(_is(item, item_type) for item in value):
            raise UsageError(f"{where} must be a list of {item_type.__name__}, got {value!r}")
        return tuple(value)
    if not _is(value, hint):
        raise UsageError(f"{where} must be {hint.__name__}, got {value!r}")
    return value
