"""GSM8K: school mathematics in words, with solutions that end in ``#### <number>`` (arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from lit_rl.text.chat import ask
from lit_rl.types import Sample

from .base import PromptDataModule
from .jsonl import Malformed, field, load_hub, read_jsonl, read_rows, split_of, thin_out
from .positions import PositionSpec

INSTRUCTION = "Reason step by step, and end with a line that holds the answer alone, as #### <number>."
MARKER = "####"
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


class Problem(NamedTuple):
    """A row of GSM8K."""

    question: str
    solution: str
    """Steps, and the answer behind the marker."""
    answer: str


class GSM8K(PromptDataModule):
    """GSM8K for SFT and reinforcement learning, and with ``positions`` for Reinforcement Pre-Training.

    Its training file is split by a hash of the question into training and validation problems, the same in every run. Its test
    file is for `test` alone; should one of its questions stand in the training file too, it is left out there.

    Args:
        path: the training file, JSONL with ``question`` and ``answer``, or a folder with one ``*train*.jsonl`` and one
            ``*test*.jsonl``; none: load ``dataset``.
        test_path: the test file, where ``path`` is a file.
        dataset: a name or folder for `datasets`, with the config ``main`` and the splits ``train`` and ``test``.
        malformed: ``refuse`` stops at a malformed line, ``skip`` leaves such lines out and reports their numbers.
        chat: ask in the tokenizer's chat template, where it has one.
        calculator_marks: keep the marks ``<<48/2=24>>`` in the solutions.
        val_share: share of the training file that is held out for validation, between 0 and 1.
        eval_problems: problems of the validation set and of the test set, evenly spread; 0 takes all of them.
        positions: positions inside the solutions in place of whole problems, for RPT; their context is the bare question and
            the solution so far.
        batch_size: prompts per batch, over all ranks: one optimizer step of SFT, one rollout of reinforcement learning.
        eval_batch_size: problems that are answered at a time in evaluation, on each rank.
        num_workers: loader processes per rank; 0 prepares batches in the main process.
        group_by_length: put texts of like length into one batch (SFT: less padding).
        seed: of the order of samples; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        path: str | None = None,
        test_path: str | None = None,
        dataset: str = "openai/gsm8k",
        malformed: Malformed = "refuse",
        chat: bool = True,
        calculator_marks: bool = False,
        val_share: float = 0.2,
        eval_problems: int = 0,
        positions: PositionSpec | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        group_by_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, group_by_length, seed)
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share is {val_share}; write a share between 0 and 1, for example 0.2.")
        self.path, self.test_path, self.dataset, self.malformed = path, test_path, dataset, malformed
        self.chat, self.calculator_marks, self.val_share = chat, calculator_marks, val_share
        self.eval_problems, self.positions = eval_problems, positions

    def prepare_data(self) -> None:
        if not self.path:
            rank_zero_info(f"data: {self.dataset} is downloaded, unless `datasets` has it in its cache")
        self._read("train")  # which is when a missing file is found

    def setup(self, stage: str) -> None:
        problems = {split: list(enumerate(self._read(split))) for split in ("train", "test")}
        tested = {problem.question for _, problem in problems["test"]}
        sides: dict[bool, list[tuple[int, Problem]]] = {True: [], False: []}
        for number, problem in problems["train"]:
            if problem.question not in tested:
                sides[split_of(problem.question) < self.val_share].append((number, problem))
        self.train_set = self._samples(sides[False])  # type: ignore[assignment]  # a list serves
        self.val_set = thin_out(self._samples(sides[True]), self.eval_problems)
        self.test_set = thin_out(self._samples(problems["test"]), self.eval_problems)
        self._check_sizes()
        if self.positions:
            self.take_positions(self.positions)

    def _read(self, split: str) -> Iterator[Problem]:
        if self.path:
            return read_jsonl(self._files(Path(self.path))[split], read_problem, self.malformed)
        splits = load_hub(self.dataset, "main")
        if split not in splits:
            raise ValueError(f"data.dataset: {self.dataset!r} has no split {split!r}, only {', '.join(splits)}.")
        return read_rows(splits[split], read_problem, self.malformed, f"{self.dataset} ({split})")

    def _files(self, path: Path) -> dict[str, Path]:
        """The files of both splits."""
        if path.is_file():
            if not (self.test_path and Path(self.test_path).is_file()):
                raise ValueError(
                    f"data.test_path: no file {self.test_path!r}; give GSM8K's test file, or the folder of both as path."
                )
            return {"train": path, "test": Path(self.test_path)}
        found = {split: sorted(path.glob(f"*{split}*.jsonl")) for split in ("train", "test")}
        for split, files in found.items():
            if len(files) != 1:
                raise ValueError(
                    f"data.path: {len(files)} files {path}/*{split}*.jsonl, one is needed; give a folder with one, the "
                    f"training file itself and test_path, or no path, which loads {self.dataset}."
                )
        return {split: files[0] for split, files in found.items()}

    def _samples(self, problems: list[tuple[int, Problem]]) -> list[Sample]:
        return [
            Sample(self._prompt(problem.question), self._completion(problem.solution), problem.answer, number)
            for number, problem in problems
        ]

    def _prompt(self, question: str) -> str:
        if self.positions:
            return f"{question}\n\n"
        return ask(f"{question}\n\n{INSTRUCTION}", self.tokenizer, self.chat)

    def _completion(self, solution: str) -> str:
        return solution if self.calculator_marks else CALCULATOR_MARK.sub("", solution)

    def _check_sizes(self) -> None:
        sizes = {name: len(getattr(self, f"{name}_set")) for name in ("train", "val", "test")}
        if not all(sizes.values()):
            raise ValueError(
                f"data: {sizes['train']} training, {sizes['val']} validation and {sizes['test']} test problems; none may be "
                f"empty: give more, change data.val_share ({self.val_share}), and test on another file than you train on."
            )


def read_problem(row: Any) -> Problem:
    """A row of the files.

    Raises:
        ValueError: where it is malformed.
    """
    question, solution = field(row, "question", str), field(row, "answer", str)
    _, marker, answer = solution.rpartition(MARKER)
    if not marker or not answer.strip():
        raise ValueError(f"the solution in 'answer' does not end in a line {MARKER} <number>")
    return Problem(question, solution, answer.strip())
