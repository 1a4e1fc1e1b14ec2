"""Rows of a data set from a JSONL file or by a `datasets` name; malformed ones are refused or left out, by their number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

Malformed = Literal["refuse", "skip"]
"""What happens to a row that is no JSON, lacks a field or has one of another type."""

T = TypeVar("T")

SHOWN = 5
"""Numbers of malformed rows that the warning lists."""


def read_jsonl(path: str | Path, read: Callable[[Any], T], malformed: Malformed = "refuse") -> Iterator[T]:
    """What ``read`` makes of each line's JSON; empty lines are passed over.

    Args:
        path: a file in UTF-8.
        read: turns a row into what is wanted, and raises ValueError where the row is malformed (`field` does).
        malformed: ``refuse`` stops at the first such line, ``skip`` warns of all of them at the end.

    Raises:
        ValueError: with file and line number.
    """
    with Path(path).open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        yield from _read_each(lines, lambda line: read(_parse(line)), malformed, f"{path}, line")


def read_rows(rows: Iterable[Any], read: Callable[[Any], T], malformed: Malformed, source: str) -> Iterator[T]:
    """The same of rows that are objects already, numbered from 0 as `datasets` does."""
    yield from _read_each(enumerate(rows), read, malformed, f"{source}, row")


def load_hub(name: str, config: str | None = None) -> Mapping[str, Sequence[Any]]:
    """All splits of a data set, by `datasets`: downloaded and converted once, with progress bars, then read from its cache.

    Raises:
        ValueError: where it is not to be had.
    """
    import datasets  # seconds, and not needed where there is a file

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # offline, renamed, private, broken: each raises something else
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise ValueError(
            f"data.dataset: cannot load {name!r} ({reason}); set data.path to a JSONL file of it, "
            "or data.dataset to another name."
        ) from error


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a row.

    Raises:
        ValueError: where the row is no object, lacks the field, or has one of another type.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a {type(row).__name__} and no object; write {{{json.dumps(name)}: ...}}")
    if name not in row:
        raise ValueError(f"no field {name!r}, only {', '.join(map(str, row)) or 'an empty object'}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"field {name!r} is of type {type(row[name]).__name__}; write {wanted}")
    return row[name]


def split_of(text: str) -> float:
    """Where a text falls in [0, 1): the same in every run and whatever stands beside it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def thin_out(rows: list[T], count: int) -> list[T]:
    """``count`` rows, evenly spread; 0 leaves all."""
    if not 0 < count < len(rows):
        return rows
    return [rows[place * len(rows) // count] for place in range(count)]


def _parse(line: bytes) -> Any:
    """The JSON of a line; all that can be wrong with it is a ValueError of one line."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("no JSON that can be read: it is nested too deeply") from error


def _read_each(rows: Iterable[tuple[int, Any]], read: Callable[[Any], T], malformed: Malformed, place: str) -> Iterator[T]:
    """Read numbered rows; ``place`` goes before a number in messages."""
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
            yield value
    if faults:
        shown = ", ".join(map(str, faults[:SHOWN])) + (", ..." if len(faults) > SHOWN else "")
        rank_zero_warn(f"{place} {shown}: left out {len(faults)} malformed; the first: {reason}")
