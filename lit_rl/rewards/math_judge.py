"""Equality of two mathematical answers (`lit_rl.rewards.math_equality`), judged in a process of its own.

An answer of a policy can keep a computer algebra system busy for ever (``9^{9^{9^{9}}}``), or fill the memory. math-verify's
own time limit raises an exception from a signal, which needs the main thread and does not interrupt a long multiplication. Here
the alarm ends the whole process, and the next question starts another. The first question starts the process; it ends with the
process that asks.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import TextIO, cast

LIMIT_SECONDS = 5.0
"""Time limit of a question."""
PROGRAM = Path(__file__).with_name("math_equality.py")
"""Program of the process."""
MAX_CHARACTERS = 1000
"""Longer answers are equal to nothing but themselves: parsing takes long, and the text may come from a model."""


@lru_cache(maxsize=2**16)
def equal_answers(reference: str, answer: str) -> bool:
    """Whether an answer in LaTeX equals the reference; equal texts do, answers that cannot be judged do not."""
    if reference == answer:
        return True
    return max(len(reference), len(answer)) <= MAX_CHARACTERS and _JUDGE.equal(reference, answer)


class MathJudge:
    """A process that answers one question at a time; any thread may ask.

    Args:
        seconds: time limit of a question; then the process ends, and the answers are not equal.
    """

    def __init__(self, seconds: float = LIMIT_SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, reference: str, answer: str) -> bool:
        """Whether the two are equal."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = self._start()
            verdict = _ask(process, json.dumps([reference, answer]))
            if not verdict:  # out of time or memory
                self._process = None
                _end(process)
            return verdict == "equal"

    def _start(self) -> subprocess.Popen[str]:
        # -P: the files beside this one must not shadow modules. A session of its own: Ctrl-C is for the run.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        if _ask(process, json.dumps(["1", "1"])) != "equal":
            raise RuntimeError("math-verify does not start; mend it with `pip install math-verify`.")
        return process


def _ask(process: subprocess.Popen[str], question: str) -> str:
    """Write one line and read another; empty if the process has ended."""
    stdin, stdout = cast("tuple[TextIO, TextIO]", (process.stdin, process.stdout))  # Popen does not say that PIPE was given
    try:
        stdin.write(f"{question}\n")
        stdin.flush()
    except OSError:
        return ""
    return stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(OSError):  # a question that it did not read
        process.communicate()


_JUDGE = MathJudge()
