"""Recordings of rollouts that are killed by SIGKILL again and again, compared with one that nobody disturbed.

    python tests/killed_recordings.py --kills 20 --seed 1

A kill comes when the file has grown by a random number of bytes, or in the middle of a line. The next start goes on. Libraries
are loaded once: each start is a fork of this process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_data
from kill_runs import at_call, die, ending, fork
from recorded_runs import record

import lit_rl.callbacks.rollout_writer

torch.set_num_threads(1)
QUESTIONS = 80


def recording(folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Number of a process that records in batches of 4 questions."""

    def run() -> None:
        prepare()
        record(folder, limit=QUESTIONS, data=tiny_data(epoch_size=QUESTIONS, eval_batch_size=4))

    folder.mkdir(parents=True, exist_ok=True)
    return fork(folder / "output.log", run)


def finish(folder: Path) -> bytes:
    """Record to the end, in a process of its own; returns the content of the file."""
    code = ending(recording(folder))
    if code:
        raise RuntimeError(f"the recording ended with {code}:\n{(folder / 'output.log').read_text()[-4000:]}")
    return (folder / "rollouts.jsonl").read_bytes()


def kill(folder: Path, numbers: random.Random, half: bool) -> str:
    """Record and be killed.

    Args:
        folder: folder of the recording.
        numbers: draw the moment.
        half: die in the middle of writing a batch, and not when the file has a random size.

    Returns:
        State of the file: ``half a line``, ``whole lines``, or ``too late`` if the recording had ended.
    """
    file = folder / "rollouts.jsonl"
    size, batch = file.stat().st_size if file.exists() else 0, numbers.randint(1, 2)
    dies = (lambda: at_call(batch, lit_rl.callbacks.rollout_writer, "append_lines", _half_written)) if half else (lambda: None)
    process = recording(folder, dies)
    if not half:
        _wait_for(process, file, size + numbers.randint(1, 4000))
        os.kill(process, signal.SIGKILL)
    code = ending(process)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the recording ended with {code}:\n{(folder / 'output.log').read_text()[-4000:]}")
    if code == 0:
        return "too late"
    return "whole lines" if file.read_bytes()[-1:] == b"\n" else "half a line"


def _half_written(real: Any, path: Path, written: list[str]) -> None:
    text = "\n".join(written).encode()
    with path.open("ab") as file:
        file.write(text[: random.Random(len(text)).randrange(1, len(text))])
        file.flush()
    die()


def _wait_for(process: int, path: Path, size: int) -> None:
    """Wait until a file has a size, or its process has ended."""
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.0005)


def killed_recording(root: Path, kills: int, seed: int) -> list[str]:
    """Kill a recording again and again and finish it; returns the state of the file after each kill.

    Raises:
        AssertionError: if it differs from an undisturbed recording.
    """
    whole, numbers, states = finish(root / "whole"), random.Random(seed), []
    file = root / "killed/rollouts.jsonl"
    for number in range(kills):
        states.append(kill(root / "killed", numbers, half=number % 2 == 1))
        print(f"{number:3} {file.stat().st_size if file.exists() else 0:7} of {len(whole)} bytes, {states[-1]}", flush=True)
    assert finish(root / "killed") == whole
    return states


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        states = killed_recording(Path(temporary), given.kills, given.seed)
    print(f"equal after {len(states) - states.count('too late')} kills")
    sys.exit("too late" in states)
