"""Files and folders that are replaced whole: a crash or a full disk leaves the old version as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the name of ``path`` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """
    new, old = _beside(path, "new"), _beside(path, "old")
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists() and keep_existing:
            return
        if path.exists():
            # A folder that is not empty cannot be replaced by a rename, so the old one moves aside first.
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with new_file(path) as new:
        new.write_text(text, encoding="utf-8")


def _beside(path: Path, kind: str) -> Path:
    """A path beside another, named after this process."""
    # In the same folder: between file systems a rename is refused. By process: ranks and stages may write at once.
    return path.with_name(f"{path.name}.{kind}-{os.getpid()}")
