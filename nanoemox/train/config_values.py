"""Plain values (of YAML or JSON) <-> configuration records, by the type hints of the records."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import UsageError
from .stages import Source


def to_dict(config: Any) -> Any:
    """Plain JSON values of a configuration record."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    return [to_dict(value) for value in config] if isinstance(config, list | tuple) else config


def parse_value(hint: Any, value: Any, where: str) -> Any:
    """A value of the type `hint`.

    Args:
        hint: a dataclass, Mapping, tuple, scalar type, or an optional one.
        value: plain values.
        where: key of the value, for messages; "" at the top.

    Raises:
        UsageError: a key is unknown or missing, or a value has another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return parse_value(inner, value, where)
    if dataclasses.is_dataclass(hint):
        if hint is Source and isinstance(value, str):
            value = {"set": value}
        return _parse_record(hint, _mapping(value, where), where)  # type: ignore[arg-type]
    if origin is Mapping:
        items = _mapping(value, where).items()
        return {str(name): parse_value(arguments[1], item, f"{where}.{name}") for name, item in items}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} must be a list, got {value!r}")
        return tuple(parse_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    return _parse_scalar(hint, value, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping, got {value!r}")
    return value


def _parse_record(kind: type, values: Mapping[str, Any], where: str) -> Any:
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    unknown = [str(name) for name in values if name not in hints]
    if unknown:
        raise UsageError(f"unknown key {prefix}{unknown[0]}; known are {', '.join(sorted(hints))}")
    for field in dataclasses.fields(kind):
        is_required = field.default is field.default_factory is dataclasses.MISSING
        if is_required and field.name not in values:
            raise UsageError(f"{prefix}{field.name} is missing")
    parsed = {name: parse_value(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    return kind(**parsed)


def _parse_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"{where} must be a number, got {value!r}") from None
    accepted: Any = {float: (int, float), int: int, bool: bool, str: str}[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UsageError(f"{where} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{where} must be finite, got {value!r}")
    return kind(value)
