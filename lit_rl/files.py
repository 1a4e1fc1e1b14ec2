"""Files and folders that are replaced whole: a crash or a full disk leaves the old version as it was.

Only a folder that lit-rl has written (it holds `MARKER`) is ever replaced. A process that is killed leaves its unfinished
files beside the target; the next process that writes the same target removes them. Symbolic links are followed.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

MARKER = "lit_rl.json"
"""File in each folder that `new_folder` has written."""

ABANDONED_SECONDS = 24 * 3600
"""Age from which unfinished files of another host count as left over: its processes cannot be asked."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the name of ``path`` if the block ends without an error."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    new = _beside(path, "new")
    try:
        yield new
        # Atomic within one file system: readers see the old file or the new file, never a part.
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``path`` if the block ends without an error.

    Args:
        path: the folder's name.
        keep_existing: a folder that exists when the block ends stays, and the new one is dropped.

    Raises:
        ValueError: if ``path`` exists and may not be replaced; see `check_replaceable`.
    """
    path = path.resolve()
    with trial_folder(path) as new:
        if not keep_existing:
            check_replaceable(path)
        yield new
        if path.exists() and keep_existing:
            return
        (new / MARKER).write_text(json.dumps({"lit_rl": version("lit-rl")}), encoding="utf-8")
        _replace_folder(path, new)


@contextmanager
def trial_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which is removed at the end of the block."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    new = _beside(path, "new")
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse a target that holds anything that lit-rl has not written.

    Raises:
        ValueError: if ``path`` is a file, or a folder with files but without `MARKER`.
    """
    if path.is_dir() and ((path / MARKER).is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise ValueError(
            f"{path} exists, and lit-rl has not written it ({MARKER} is not in it), so it is not replaced; "
            "move it away, or choose another folder."
        )


def clear_leftovers(path: Path) -> None:
    """Remove unfinished versions of ``path`` that dead processes left; an old version that lost its name gets it back."""
    # Old versions first: `path` is missing if a process died between its two renames.
    places = path.parent.glob(f"{glob.escape(path.name)}.*-*")
    for place in sorted(places, key=lambda place: ".old-" not in place.name):
        match = re.fullmatch(re.escape(path.name) + r"\.(new|old)-(?:(.+)-)?(\d+)", place.name)
        if match is None or not _abandoned(place, match[2], int(match[3])):
            continue
        if match[1] == "old" and not path.exists():
            place.rename(path)
        elif place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with new_file(path) as new:
        new.write_text(text, encoding="utf-8")


def _replace_folder(path: Path, new: Path) -> None:
    """Give a finished folder its name."""
    old = _beside(path, "old")
    if path.exists():
        check_replaceable(path)  # again: it may have come while the new one was filled
        # A folder that is not empty cannot be replaced by a rename, so the old one moves aside first.
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    """A path beside another, named after this process and its host."""
    # In the same folder: between file systems a rename is refused. By process: ranks and stages may write at once.
    return path.with_name(f"{path.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _abandoned(place: Path, host: str | None, process: int) -> bool:
    """Whether the process that made a temporary path is dead."""
    if host not in (None, socket.gethostname()):
        return time.time() - place.lstat().st_mtime > ABANDONED_SECONDS
    # A path under this process's own number is of an earlier process: in containers numbers repeat.
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False
