"""The process of a stage: signals to the pipeline are passed on to it, and it is waited for."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that end a run with a checkpoint; SIGUSR1 comes from SLURM before the end of a job."""


def run_process(args: list[str]) -> int:
    """Run ``lit-rl`` in a process of its own.

    A process per stage: device memory, seeds and compiled code of one stage do not reach the next.

    Args:
        args: arguments of ``lit-rl``.

    Returns:
        Exit status; 128 + the signal if a signal came, as in a shell, whether to the stage or to the pipeline.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, frame: Any) -> None:
        received.append(signum)
        if process is not None:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in PASSED_ON}
    try:
        process = subprocess.Popen([sys.executable, "-m", "lit_rl", *args])
        # One may have come before there was a process.
        for signum in tuple(received):
            process.send_signal(signum)
        status = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        return 128 + received[0]
    return 128 - status if status < 0 else status
