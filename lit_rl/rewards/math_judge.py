"""Whether two mathematical answers are equal, judged by math-verify in a process of its own.

What a policy writes can keep a computer algebra system busy for ever (``9^{9^{9^{9}}}``), or fill the memory. math-verify's own
time limit raises an exception from a signal, which needs the main thread and interrupts no long multiplication. Here the alarm
ends the whole process, and the next question starts another. It is started once, with the first question, and ends with the
process that asks.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from functools import lru_cache

SECONDS = 5.0
"""That a question may take."""
MEMORY = 4 * 2**30
"""Bytes that the judge may use."""
MAX_CHARACTERS = 1000
"""Longer answers are equal to nothing but themselves: parsing takes long, and the text may come from a model."""


@lru_cache(maxsize=2**16)
def equal_answers(reference: str, answer: str) -> bool:
    """Whether an answer in LaTeX equals the reference; equal texts do, and what cannot be judged does not."""
    if reference == answer:
        return True
    return max(len(reference), len(answer)) <= MAX_CHARACTERS and _JUDGE.equal(reference, answer)


class MathJudge:
    """A process that answers one question at a time; any thread may ask.

    Args:
        seconds: that a question may take; then the process ends, and the answers are not equal.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, reference: str, answer: str) -> bool:
        """Whether math-verify takes the two for equal."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            verdict = _ask(self._process, json.dumps([reference, answer]))
            if not verdict:  # out of time or memory
                self._end()
            return verdict == "equal"

    def _start(self) -> subprocess.Popen[str]:
        # -P: the files beside this one are no modules for it. A session of its own: Ctrl-C is for the run.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        if _ask(process, json.dumps(["1", "1"])) != "equal":
            raise RuntimeError("math-verify does not start; mend it with `pip install math-verify`.")
        return process

    def _end(self) -> None:
        assert self._process is not None
        self._process.kill()
        with contextlib.suppress(OSError):  # what it did not read
            self._process.communicate()
        self._process = None


def _ask(process: subprocess.Popen[str], question: str) -> str:
    """One line for another; empty where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
    except OSError:
        return ""
    return process.stdout.readline().strip()


_JUDGE = MathJudge()


def _serve(seconds: float) -> None:
    """Answer the questions on stdin until it is closed."""
    import resource
    import signal

    import math_verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process, whatever it is doing
    verdicts, sys.stdout = sys.stdout, sys.stderr  # so that nothing else is taken for a verdict
    # LaTeX alone: math-verify gives other expressions to sympy's parser, which evaluates them as Python.
    latex = [math_verify.LatexExtractionConfig()]
    math_verify.parse(r"\boxed{1}", latex, parsing_timeout=None)  # the first takes long
    for question in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reference, answer = (
                math_verify.parse(rf"\boxed{{{text}}}", latex, parsing_timeout=None) for text in json.loads(question)
            )
            equal = math_verify.verify(reference, answer, timeout_seconds=None)
        except Exception:  # whatever a computer algebra system makes of what a policy writes
            equal = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("equal" if equal else "different", file=verdicts, flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
