"""Lock of a folder: two processes never write to one run."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lit_rl.text.terminal import printable

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; nothing is left of the lock at the end, and no folder that stayed empty.

    Raises:
        ValueError: if another process has the folder, with the number of the process.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = _taken(folder / NAME)
    try:
        yield
    finally:
        # Removed while it is still locked, so that nobody waits for a file that is going away.
        (folder / NAME).unlink(missing_ok=True)
        file.close()
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _taken(path: Path) -> IO[str]:
    """The open and locked file.

    Raises:
        ValueError: if another process has it.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        # A record lock: the kernel ends it with this process, however it dies. Loader workers, which may live a few seconds
        # longer, do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = printable(file.read(200)) or "another process"
        file.close()
        raise ValueError(f"{path.parent} is in use by {holder}; wait for its end, or choose another folder.") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    # Its last owner may have removed it before it was locked here: then the lock is of no file.
    if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
        return file
    file.close()
    return _taken(path)
