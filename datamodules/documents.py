"""The documents of a corpus, piece by piece: text files, JSONL, or a data set of the ``datasets`` library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .token_cache import PIECE, Piece


def find_source(path: str, field: str) -> tuple[list[Path] | Any, Any]:
    """Where the text is, and what tells this text from any other, as JSON holds it.

    Args:
        path: a text file, a JSONL file, a folder of either, or the name of a data set.
        field: the text's field in JSONL and data sets.

    Returns:
        The files, or the training split of the data set.

    Raises:
        ValueError: where neither is to be found.
    """
    place = Path(path).expanduser()
    if place.exists():
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            raise ValueError(f"data.path: the folder {path!r} is empty; give one that holds text files.")
        states = [(str(file.resolve()), file.stat()) for file in files]
        return files, [field, [[name, state.st_size, state.st_mtime_ns] for name, state in states]]
    data = _data_set(path)
    if field not in data.column_names:
        raise ValueError(f"data.field: {path!r} has no field {field!r}; write one of {', '.join(data.column_names)}.")
    return data, [field, path, data._fingerprint]


def _data_set(path: str) -> Any:
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(f"data.path: {path!r} does not exist; give a text file, a folder, a JSONL file or a data set's name.")
    import datasets

    try:
        return datasets.load_dataset(path, split="train")
    except Exception as error:  # the hub's client has dozens of its own
        reason = str(error).split("\n")[0]
        raise ValueError(f"data.path: {path!r} is no file or folder, nor a data set that can be loaded: {reason}") from error


def read_source(source: list[Path] | Any, field: str) -> Iterator[Piece]:
    """All documents, one after another: a text file is one, and so is each line of JSONL and each row of a data set.

    Raises:
        ValueError: for bytes that are no UTF-8, with their offset, and for a broken line, with its number.
    """
    if not isinstance(source, list):
        for number, row in enumerate(source):
            yield Piece(row[field], True, (number + 1) / len(source), f"row {number}")
        return
    total, before = max(1, sum(file.stat().st_size for file in source)), 0
    for file in source:
        read = _json_lines(file, field) if file.suffix in (".jsonl", ".ndjson") else _text(file)
        for text, last, end, place in read:
            yield Piece(text, last, (before + end) / total, place)
        before += file.stat().st_size


def _text(file: Path) -> Iterator[tuple[str, bool, int, str]]:
    """Text, whether it is the last, the byte behind it, and its place; cut where a line begins with a visible character.

    Tokens of byte-level BPE do not reach across such a cut. SentencePiece may put its leading space behind it.
    """
    lines: list[bytes] = []
    start = size = 0
    with file.open("rb") as handle:
        for line in handle:
            if size >= PIECE and not line[:1].isspace():
                yield _decode(lines, file, start), False, start + size, str(file)
                lines, start, size = [], start + size, 0
            lines.append(line)
            size += len(line)
    yield _decode(lines, file, start), True, start + size, str(file)


def _decode(lines: list[bytes], file: Path, start: int) -> str:
    """Bytes as text; ``start`` is their offset in the file."""
    try:
        return b"".join(lines).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.path: {file}: byte {start + error.start} is no UTF-8 ({error.reason}); convert the file to UTF-8."
        ) from error


def _json_lines(file: Path, field: str) -> Iterator[tuple[str, bool, int, str]]:
    """The same of each line of JSONL."""
    offset = 0
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            text = _decode([line], file, offset)
            offset += len(line)
            if not text.strip():
                continue
            place = f"{file}, line {number}"
            try:
                value = json.loads(text)[field]
            except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"data.path: {place}: no JSON object with the field {field!r}; mend or remove it.") from error
            if not isinstance(value, str):
                raise ValueError(f"data.path: {place}: the field {field!r} is no text; set data.field to one that is.")
            yield value, True, offset, place
