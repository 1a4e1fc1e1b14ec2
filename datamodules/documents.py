"""The documents of a corpus, piece by piece: text files, JSONL, or a data set of the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lit_rl.options import first_line

from .jsonl import field, parse_line
from .token_cache import Piece

PIECE_BYTES = 2**20
"""Bytes of a text file after which a piece ends at the next line that allows it."""


class _Stretch(NamedTuple):
    """A stretch of a file."""

    text: str
    first: bool
    """The document begins with it."""
    last: bool
    """The document ends with it."""
    end: int
    """Offset after it, in bytes of the file."""
    place: str
    """Its name in an error message."""


def find_source(path: str, name: str) -> tuple[list[Path] | Any, Any]:
    """Find the text of a corpus.

    Args:
        path: a text file, a JSONL file, a folder of either, or the name of a data set.
        name: field of the text in JSONL and data sets.

    Returns:
        The files, or the training split of the data set; and an identity that JSON holds, equal only for equal text.

    Raises:
        ValueError: if there is neither a file nor a data set.
    """
    place = Path(path).expanduser()
    if place.exists():
        # Sorted: the order of a folder's entries differs between file systems, and the identity depends on it.
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        # Below the folder: its own path may lie in a hidden folder.
        files = [file for file in files if file == place or not _is_hidden(file.relative_to(place))]
        if not files:
            raise ValueError(f"data.path: the folder {path!r} is empty; give one that holds text files.")
        # Size and time of change stand for the content: hashing would read the whole corpus at every start.
        states = [(str(file.resolve()), file.stat()) for file in files]
        return files, [name, [[full, state.st_size, state.st_mtime_ns] for full, state in states]]
    data = _data_set(path)
    if name not in data.column_names:
        raise ValueError(f"data.field: {path!r} has no field {name!r}; write one of {', '.join(data.column_names)}.")
    return data, [name, path, data._fingerprint]


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder on the way to it is hidden, as those of git and of editors are."""
    return any(part.startswith(".") for part in path.parts)


def _data_set(path: str) -> Any:
    # A hub name has one slash at most: a mistyped path is refused here, without asking the network.
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(f"data.path: {path!r} does not exist; give a text file, a folder, a JSONL file or a data set's name.")
    import datasets  # takes seconds, and files do not need it

    try:
        return datasets.load_dataset(path, split="train")
    except Exception as error:  # the hub's client has dozens of its own
        raise ValueError(
            f"data.path: {path!r} is neither a file or folder nor a data set that can be loaded: {first_line(error)}"
        ) from error


def read_source(source: list[Path] | Any, name: str) -> Iterator[Piece]:
    """All documents, one after another: a text file, a line of JSONL or a row of a data set is a document.

    Raises:
        ValueError: for bytes that are not UTF-8, with their offset, and for a malformed line, with its number.
    """
    if not isinstance(source, list):
        for number, row in enumerate(source):
            place = f"row {number}"
            yield Piece(_document(row, name, place), True, True, (number + 1) / len(source), place)
        return
    # At least 1: a folder of empty files would divide by zero.
    total, before = max(1, sum(file.stat().st_size for file in source)), 0
    for file in source:
        stretches = _json_lines(file, name) if file.suffix in (".jsonl", ".ndjson") else _text(file)
        for text, first, last, end, place in stretches:
            yield Piece(text, first, last, (before + end) / total, place)
        before += file.stat().st_size


def _text(file: Path) -> Iterator[_Stretch]:
    """Stretches of a text file, cut where a line begins with a visible character: tokens do not reach across such a cut."""
    lines: list[bytes] = []
    start = size = 0
    with file.open("rb") as handle:
        # Bytes split at newlines alone: no character of UTF-8 is cut, and offsets count bytes.
        for line in handle:
            if size >= PIECE_BYTES and not line[:1].isspace():
                yield _Stretch(_decode(lines, file, start), start == 0, False, start + size, str(file))
                lines, start, size = [], start + size, 0
            lines.append(line)
            size += len(line)
    # Also for an empty file, which is a document without tokens.
    yield _Stretch(_decode(lines, file, start), start == 0, True, start + size, str(file))


def _decode(lines: list[bytes], file: Path, start: int) -> str:
    """Bytes as text; ``start`` is their offset in the file."""
    try:
        text = b"".join(lines).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.path: {file}: byte {start + error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8."
        ) from error
    # Some editors begin a file with a byte-order mark.
    return text if start else text.removeprefix("\ufeff")


def _json_lines(file: Path, name: str) -> Iterator[_Stretch]:
    """The documents of a JSONL file."""
    offset = 0
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            offset += len(line)
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            yield _Stretch(_document(line, name, place), True, True, offset, place)


def _document(row: Any, name: str, place: str) -> str:
    """Text of a line of JSONL, or of a row that is an object already."""
    try:
        return field(parse_line(row) if isinstance(row, bytes) else row, name, str)
    except ValueError as error:
        raise ValueError(f"data.path: {place}: {error}; mend or remove it, or set data.field to another field.") from error
