"""Text files that grow by whole lines: what a killed process has written of a line is cut off before the next one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def cut_unfinished(path: Path) -> None:
    """Cut off a last line without its end, which a process wrote when it was killed."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines; all of them are on the disk when this returns."""
    with path.open("ab") as file:
        file.writelines(f"{line}\n".encode() for line in lines)
        file.flush()
        os.fsync(file.fileno())
