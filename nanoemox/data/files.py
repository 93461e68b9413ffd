"""Readers of annotation files. Their errors name the file and the place in it."""

import csv
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError, UsageError
from ..tasks import split_list

T = TypeVar("T")
_TYPE_NAMES = {str: "text", dict: "an object", list: "an array", int: "a whole number"}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; this is where the annotations of the data set belong"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not in UTF-8 (byte {error.start}); convert it") from error


def read_json(path: Path, kind: type[T]) -> T:
    """The value of a JSON file whose top level is an object (dict) or an array (list). Raises DataError."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not JSON ({error.msg}); is the file whole?") from error
    except ValueError as error:  # a number of too many digits
        raise DataError(f"{path}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be an annotation file") from error
    if not isinstance(value, kind):
        raise DataError(f"{path}: must hold {_TYPE_NAMES[kind]}, not {type(value).__name__}")
    return value


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file (RFC 4180). Raises DataError.

    Args:
        path: the file; its first line names the columns.
        columns: columns that must exist. The first is the key of a row and must not be empty.

    Returns:
        Column -> text of each row, these columns alone; a cell that is absent is "".
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", strict=True)
    rows = []
    try:
        header = list(reader.fieldnames or [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise DataError(f"{path}: column {missing[0]!r} is missing; it has {', '.join(header) or 'none'}")
        for row in reader:
            surplus = row.pop(None, [])
            if any(surplus):
                raise DataError(
                    f"{path}: line {reader.line_num}: more cells than columns; quote a cell with commas"
                )
            if not row[columns[0]].strip():
                raise DataError(f"{path}: line {reader.line_num}: {columns[0]!r} is empty")
            rows.append({column: row[column] for column in columns})
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + 1}: {error}; is every quote closed?") from error
    return rows


def require(value: Any, kind: type[T], where: str) -> T:
    """Return `value` if it is of this kind (a bool is no int), else raise DataError.

    Args:
        value: part of a JSON value; None counts as missing.
        kind: str, int, list or dict.
        where: file, item and key, for the message.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        problem = "is missing" if value is None else f"is {value!r:.60}"
        raise DataError(f"{where}: {problem}, must be {_TYPE_NAMES[kind]}")
    return value


def check_split(format: str, split: str, known: Collection[str]) -> None:
    """Raise UsageError if the format has no such part. `known` is a tuple or a mapping of parts."""
    if split not in known:
        raise UsageError(f"{format} has no part {split!r}: use {', '.join(known)}")


def read_labels(text: str) -> list[str]:
    """A list string -> labels; an empty list counts as neutral (docs/tasks.md sections 3.4 and 3.9)."""
    return split_list(text) or ["neutral"]
