"""Omni-MATH: 4,428 problems of mathematical olympiads, with difficulty and domain (arXiv 2410.07985)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from lit_rl.text.chat import ask
from lit_rl.types import Sample

from .base import PromptDataModule
from .jsonl import Malformed, field, load_hub, read_jsonl, read_rows, split_of, thin_out
from .positions import PositionSpec

INSTRUCTION = r"Reason step by step, and put your final answer within \boxed{}."


class Problem(NamedTuple):
    """A row of Omni-MATH."""

    problem: str
    solution: str
    answer: str
    difficulty: float
    domains: list[str]
    """Paths such as ``Mathematics -> Algebra -> Intermediate Algebra``."""


class OmniMath(PromptDataModule):
    r"""Omni-MATH for SFT and reinforcement learning, and with ``positions`` for Reinforcement Pre-Training.

    The data set has one split. Which of its problems are held out is decided by a hash of their text, before any filter: a
    problem is on the same side in every run, whatever the filters are.

    Args:
        path: a JSONL file with ``problem``, ``solution``, ``answer``, ``difficulty`` and ``domain``; none: load ``dataset``.
        dataset: a name or folder for `datasets`; all its splits are taken together.
        malformed: ``refuse`` stops at a malformed line, ``skip`` leaves such lines out and reports their numbers.
        min_difficulty: the easiest problems to keep, on the data set's scale from 1 to 10.
        max_difficulty: the hardest problems to keep.
        domains: keep problems of these domains only, each a name (``Algebra``) or the beginning of a path (``Mathematics ->
            Algebra``); none keeps all.
        chat: ask in the tokenizer's chat template, where it has one.
        val_share: share of the problems that is held out for validation.
        test_share: share of the problems that is held out for testing.
        eval_problems: problems of the validation set and of the test set, evenly spread; 0 takes all of them.
        positions: positions inside the solutions in place of whole problems, for RPT; their context is the bare problem and
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
        dataset: str = "KbsdJames/Omni-MATH",
        malformed: Malformed = "refuse",
        min_difficulty: float = 0.0,
        max_difficulty: float = 10.0,
        domains: list[str] | None = None,
        chat: bool = True,
        val_share: float = 0.1,
        test_share: float = 0.1,
        eval_problems: int = 0,
        positions: PositionSpec | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        group_by_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, group_by_length, seed)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                f"data.val_share is {val_share} and test_share {test_share}; write shares above 0, together below 1."
            )
        self.path, self.dataset, self.malformed = path, dataset, malformed
        self.min_difficulty, self.max_difficulty, self.domains = min_difficulty, max_difficulty, domains
        self.chat, self.val_share, self.test_share = chat, val_share, test_share
        self.eval_problems, self.positions = eval_problems, positions

    def prepare_data(self) -> None:
        if not self.path:
            rank_zero_info(f"data: {self.dataset} is downloaded, unless `datasets` has it in its cache")
        self._read()  # which is when a missing file is found

    def setup(self, stage: str) -> None:
        problems = self.keep(list(self._read()))
        sets: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
        for number, problem in problems:
            sets[self._side(problem.problem)].append(self._sample(number, problem))
        if not all(sets.values()):
            sizes = ", ".join(f"{len(samples)} {name}" for name, samples in sets.items())
            raise ValueError(
                f"data: {len(problems)} problems make {sizes}; widen the filters, or change val_share and test_share."
            )
        self.train_set = sets["train"]  # type: ignore[assignment]  # a list serves
        self.val_set, self.test_set = (thin_out(sets[name], self.eval_problems) for name in ("val", "test"))
        if self.positions:
            self.take_positions(self.positions)

    def keep(self, problems: list[Problem]) -> list[tuple[int, Problem]]:
        """The problems that pass the filters, with their numbers among all of them.

        Raises:
            ValueError: where there are none.
        """
        kept = [(number, problem) for number, problem in enumerate(problems) if self._passes(problem)]
        if not kept:
            levels = [problem.difficulty for problem in problems]
            there = f"have difficulties from {min(levels)} to {max(levels)}" if levels else "are there"
            names = sorted({name for problem in problems for path in problem.domains for name in path.split(" -> ")[1:2]})
            raise ValueError(
                f"data: none of {len(problems)} problems is left by min_difficulty {self.min_difficulty}, "
                f"max_difficulty {self.max_difficulty} and domains {self.domains or 'all'}; they {there}, "
                f"in {', '.join(names) or 'no domain'}."
            )
        return kept

    def _read(self) -> Iterator[Problem]:
        if not self.path:
            rows = [row for split in load_hub(self.dataset).values() for row in split]
            return read_rows(rows, read_problem, self.malformed, self.dataset)
        if not Path(self.path).is_file():
            raise ValueError(f"data.path: no file {self.path!r}; give a JSONL file, or no path, which loads {self.dataset}.")
        return read_jsonl(self.path, read_problem, self.malformed)

    def _passes(self, problem: Problem) -> bool:
        # Whole names: Algebra is no part of Intermediate Algebra.
        named = [name for name in self.domains or [] if any(f"> {name} -" in f"> {path} -" for path in problem.domains)]
        return self.min_difficulty <= problem.difficulty <= self.max_difficulty and (bool(named) or not self.domains)

    def _side(self, text: str) -> str:
        place = split_of(text)
        return "val" if place < self.val_share else "test" if place < self.val_share + self.test_share else "train"

    def _sample(self, number: int, problem: Problem) -> Sample:
        return Sample(self._prompt(problem.problem), problem.solution, problem.answer, number)

    def _prompt(self, text: str) -> str:
        if self.positions:
            return f"{text}\n\n"
        return ask(f"{text}\n\n{INSTRUCTION}", self.tokenizer, self.chat)


def read_problem(row: Any) -> Problem:
    """A row of the files.

    Raises:
        ValueError: where it is malformed.
    """
    problem, solution, answer = (field(row, name, str) for name in ("problem", "solution", "answer"))
    domains = field(row, "domain", list)
    if not all(isinstance(path, str) for path in domains):
        raise ValueError("field 'domain' holds something else than texts")
    return Problem(problem, solution, answer, float(field(row, "difficulty", (int, float))), domains)
