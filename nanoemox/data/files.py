"""Annotation files read with complaints that name the file and the place in it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError

_SHOWN = {"str": "text", "dict": "an object", "list": "an array", "int": "a whole number"}


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; this is where the annotations of the data set belong"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not in UTF-8 (byte {error.start}); convert it") from error


def read_json(path: Path, kind: type) -> Any:
    """A JSON file that holds one object (dict) or one array (list)."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: line {error.lineno}: not JSON ({error.msg}); is the file whole?"
        ) from error
    except ValueError as error:
        raise ValueError(error if str(path) in str(error) else f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply to be an annotation file") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: must hold {_SHOWN[kind.__name__]}, not {type(value).__name__}")
    return value


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV file (RFC 4180) with at least these columns, the first of which is a row's key; an absent cell
    is ""."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", strict=True)
    rows = []
    try:
        found = list(reader.fieldnames or [])
        if missing := [column for column in columns if column not in found]:
            raise ValueError(f"{path}: column {missing[0]!r} is missing; it has {', '.join(found) or 'none'}")
        for row in reader:
            if any(row.pop(None, [])):
                raise ValueError(
                    f"{path}: line {reader.line_num}: more cells than columns; quote a cell with commas"
                )
            if not row[columns[0]].strip():
                raise ValueError(f"{path}: line {reader.line_num}: {columns[0]!r} is empty")
            rows.append({column: row[column] for column in columns})
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num + 1}: {error}; is every quote closed?") from error
    return rows


def need(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """`value`, if it is of this kind; `where` names file, item and key."""
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_SHOWN[k.__name__] for k in kinds)
        raise ValueError(
            f"{where}: {'is missing' if value is None else f'is {value!r:.60}'}, must be {wanted}"
        )
    return value


def check_split(format: str, split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise UsageError(f"{format} has no part {split!r}: use {', '.join(known)}")


def read_list(text: str) -> list[str]:
    """`[a, b]`, `['a', 'b']` or `a, b` -> labels; none at all counts as neutral (tasks.md 3.4)."""
    from ..tasks import split_list

    return split_list(text) or ["neutral"]
