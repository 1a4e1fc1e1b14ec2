"""Rows of a data set from a JSONL file or by a `datasets` name; malformed rows are refused or left out, by their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from lit_rl.options import first_line

Malformed = Literal["refuse", "skip"]
"""Treatment of a row that is not JSON, lacks a field or has a field of another type."""

T = TypeVar("T")

WARNED_ROWS = 5
"""Malformed rows whose numbers the warning lists."""


def read_jsonl(path: str | Path, read: Callable[[Any], T], malformed: Malformed) -> Iterator[T]:
    """Read a row from each line's JSON; empty lines are passed over.

    Args:
        path: a file in UTF-8.
        read: reads a row, and raises ValueError if the row is malformed (`field` does).
        malformed: ``refuse`` stops at the first malformed row, ``skip`` warns of all of them at the end.

    Raises:
        ValueError: for a malformed row, with file and line number.
    """
    # As bytes: a line that is not UTF-8 is then one row's fault, with its number, and does not end the whole file.
    with Path(path).open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        yield from _read_each(lines, lambda line: read(parse_line(line)), malformed, f"{path}, line")


def read_rows(rows: Iterable[Any], read: Callable[[Any], T], malformed: Malformed, source: str) -> Iterator[T]:
    """Read rows that are objects already, numbered from 0 as in `datasets`; else as `read_jsonl`."""
    yield from _read_each(enumerate(rows), read, malformed, f"{source}, row")


def load_hub(name: str, config: str | None = None) -> Mapping[str, Sequence[Any]]:
    """All splits of a data set, by `datasets`: downloaded and converted once, with progress bars, then read from its cache.

    Raises:
        ValueError: if the data set cannot be loaded.
    """
    import datasets  # takes seconds, and a file does not need it

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # offline, renamed, private, broken: each raises something else
        raise ValueError(
            f"data.dataset: cannot load {name!r} ({type(error).__name__}: {first_line(error)}); "
            "set data.path to a JSONL file of it, or data.dataset to another name."
        ) from error


def parse_line(line: bytes) -> Any:
    """The JSON of a line.

    Raises:
        ValueError: if there is none, with a message of one line.
    """
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a row.

    Raises:
        ValueError: if the row is not an object, lacks the field, or has a field of another type.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a {type(row).__name__}, not an object; write {{{json.dumps(name)}: ...}}")
    if name not in row:
        raise ValueError(f"field {name!r} is missing; there is {', '.join(map(str, row)) or 'an empty object'}")
    # True is an int to Python, but not a number in a row.
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"field {name!r} is of type {type(row[name]).__name__}; write {wanted}")
    if isinstance(row[name], str):
        _check_encodes(row[name], name)
    return row[name]


def _check_encodes(text: str, name: str) -> None:
    """Refuse a text that no tokenizer and no file can take: JSON may write half a character, such as ``\\ud83d``."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(
            f"field {name!r} holds half a character ({half}, a lone surrogate) at character {error.start + 1}"
        ) from error


def thin_out(rows: list[T], count: int) -> list[T]:
    """``count`` rows, evenly spread; 0 keeps all."""
    if not 0 < count < len(rows):
        return rows
    # Fewer places than rows, so no row comes twice.
    return [rows[place * len(rows) // count] for place in range(count)]


def _read_each(rows: Iterable[tuple[int, Any]], read: Callable[[Any], T], malformed: Malformed, place: str) -> Iterator[T]:
    """Read numbered rows; ``place`` precedes a number in messages."""
    faults: list[int] = []
    reason = ""
    for number, row in rows:
        try:
            value = read(row)
        except ValueError as error:
            if malformed == "refuse":
                raise ValueError(f"{place} {number}: {error}; or leave such rows out with data.malformed: skip.") from error
            reason = reason or str(error)
            faults.append(number)
        else:
            # Outside the try: errors of the consumer are not the row's.
            yield value
    # One warning after the last row: a warning for each would bury the log.
    if faults:
        shown = ", ".join(map(str, faults[:WARNED_ROWS])) + (", ..." if len(faults) > WARNED_ROWS else "")
        rank_zero_warn(f"{place} {shown}: left out {len(faults)} malformed; the first: {reason}")
