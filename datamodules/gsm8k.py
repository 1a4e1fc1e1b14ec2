"""GSM8K: school mathematics in words, with solutions that end in ``#### <number>`` (arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .jsonl import field
from .word_problems import Problem, SetName, WordProblems, set_of

MARKER = "####"
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
SPLITS = ("train", "test")


class GSM8K(WordProblems[Problem]):
    """GSM8K for SFT and reinforcement learning, and with ``positions`` for Reinforcement Pre-Training.

    A hash of the question divides the training file into training and validation problems, the same in every run. The test
    file is for `test` alone; questions of the test file that the training file has too are left out of training.

    Args:
        path: the training file, JSONL with ``question`` and ``answer``, or a folder with one ``*train*.jsonl`` and one
            ``*test*.jsonl``; none: load ``dataset``.
        test_path: the test file, if ``path`` is a file.
        dataset: a name or folder for `datasets`, with the config ``main`` and the splits ``train`` and ``test``.
        calculator_marks: keep the marks ``<<48/2=24>>`` in the solutions.
        val_share: share of the training file that is held out for validation, between 0 and 1.
    """

    instruction = f"Reason step by step, and end with a line that holds the answer alone, as {MARKER} <number>."
    hub_config = "main"
    remedy = "give more, change data.val_share, and test on another file than you train on"

    def __init__(
        self,
        path: str | None = None,
        test_path: str | None = None,
        *,
        dataset: str = "openai/gsm8k",
        calculator_marks: bool = False,
        val_share: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(path, dataset, **options)
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share is {val_share}; write a share between 0 and 1, for example 0.2.")
        self.test_path, self.calculator_marks, self.val_share = test_path, calculator_marks, val_share

    def _files(self, path: Path) -> dict[str, Path]:
        if path.is_file():
            if not (self.test_path and Path(self.test_path).is_file()):
                raise ValueError(
                    f"data.test_path: {self.test_path!r} is not a file; give GSM8K's test file, or the folder of both as path."
                )
            return {"train": path, "test": Path(self.test_path)}
        # Exactly one file per part: a second one, such as a filtered copy, must not be taken by the order of names.
        found = {split: sorted(path.glob(f"*{split}*.jsonl")) for split in SPLITS}
        for split, files in found.items():
            if len(files) != 1:
                raise ValueError(
                    f"data.path: {len(files)} files {path}/*{split}*.jsonl, one is needed; give a folder with one, the "
                    f"training file itself and test_path, or no path, which loads {self.dataset}."
                )
        return {split: files[0] for split, files in found.items()}

    def _tables(self, splits: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        for split in SPLITS:
            if split not in splits:
                raise ValueError(f"data.dataset: {self.dataset!r} lacks the split {split!r}, it has {', '.join(splits)}.")
        return {split: splits[split] for split in SPLITS}

    def _read(self, row: Any) -> Problem:
        question, solution = field(row, "question", str), field(row, "answer", str)
        # The last marker: a solution may write one earlier.
        _, marker, answer = solution.rpartition(MARKER)
        if not marker or not answer.strip():
            raise ValueError(f"the solution in 'answer' does not end in a line {MARKER} <number>")
        # Without the marks by default: no policy here has the calculator that they call.
        return Problem(question, solution if self.calculator_marks else CALCULATOR_MARK.sub("", solution), answer.strip())

    def _divide(self, parts: dict[str, list[tuple[int, Problem]]]) -> dict[SetName, list[tuple[int, Problem]]]:
        # A question of both files would be learned by heart before it is tested.
        tested = {problem.question for _, problem in parts["test"]}
        sets: dict[SetName, list[tuple[int, Problem]]] = {"train": [], "val": [], "test": parts["test"]}
        for number, problem in parts["train"]:
            if problem.question not in tested:
                sets[set_of(problem.question, self.val_share)].append((number, problem))
        return sets
