"""Omni-MATH: 4,428 problems of mathematical olympiads, with difficulty and domain (arXiv 2410.07985)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from .jsonl import field
from .word_problems import Problem, SetName, WordProblems, set_of


@dataclass(frozen=True)
class OlympiadProblem(Problem):
    """A row of Omni-MATH."""

    difficulty: float
    domains: list[str]
    """Paths such as ``Mathematics -> Algebra -> Intermediate Algebra``."""


class OmniMath(WordProblems[OlympiadProblem]):
    r"""Omni-MATH for SFT and reinforcement learning, and with ``positions`` for Reinforcement Pre-Training.

    The data set has one split. A hash of the text decides whether a problem is held out, before any filter: a problem is in
    the same set in every run, whatever the filters are.

    Args:
        path: a JSONL file with ``problem``, ``solution``, ``answer``, ``difficulty`` and ``domain``; none: load ``dataset``.
        dataset: a name or folder for `datasets`; all its splits are taken together.
        min_difficulty: difficulty of the easiest problems to keep, on the data set's scale from 1 to 10.
        max_difficulty: difficulty of the hardest problems to keep.
        domains: keep problems of these domains only, each a name (``Algebra``) or the beginning of a path (``Mathematics ->
            Algebra``); none keeps all.
        val_share: share of the problems that is held out for validation.
        test_share: share of the problems that is held out for testing.
    """

    instruction = r"Reason step by step, and put your final answer within \boxed{}."
    remedy = "widen the filters, or change data.val_share and data.test_share"

    def __init__(
        self,
        path: str | None = None,
        *,
        dataset: str = "KbsdJames/Omni-MATH",
        min_difficulty: float = 0.0,
        max_difficulty: float = 10.0,
        domains: list[str] | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(path, dataset, **options)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                f"data.val_share is {val_share} and test_share {test_share}; write shares above 0, together below 1."
            )
        self.min_difficulty, self.max_difficulty, self.domains = min_difficulty, max_difficulty, domains
        self.val_share, self.test_share = val_share, test_share

    def _files(self, path: Path) -> dict[str, Path]:
        if not path.is_file():
            raise ValueError(
                f"data.path: {str(path)!r} is not a file; give a JSONL file, or no path, which loads {self.dataset}."
            )
        return {"all": path}

    def _tables(self, splits: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        # The published data set has one split, which says nothing about what may be trained on.
        return {"all": list(chain.from_iterable(splits.values()))}

    def _read(self, row: Any) -> OlympiadProblem:
        problem, solution, answer = (field(row, name, str) for name in ("problem", "solution", "answer"))
        domains = field(row, "domain", list)
        if not all(isinstance(path, str) for path in domains):
            raise ValueError("field 'domain' holds values that are not text")
        return OlympiadProblem(problem, solution, answer, float(field(row, "difficulty", (int, float))), domains)

    def _divide(self, parts: dict[str, list[tuple[int, OlympiadProblem]]]) -> dict[SetName, list[tuple[int, OlympiadProblem]]]:
        sets: dict[SetName, list[tuple[int, OlympiadProblem]]] = {"train": [], "val": [], "test": []}
        # The numbers were given before the filter: sampling is keyed by them, so filters leave a problem's draws alone.
        for number, problem in self._filter(parts["all"]):
            sets[set_of(problem.question, self.val_share, self.test_share)].append((number, problem))
        return sets

    def _filter(self, problems: list[tuple[int, OlympiadProblem]]) -> list[tuple[int, OlympiadProblem]]:
        """Problems that pass the filters.

        Raises:
            ValueError: if no problem passes them.
        """
        kept = [(number, problem) for number, problem in problems if self._passes(problem)]
        if not kept:
            levels = [problem.difficulty for _, problem in problems]
            there = f"have difficulties from {min(levels)} to {max(levels)}" if levels else "are there"
            # The second level of the paths, such as Algebra: all levels would be too many for one line.
            names = sorted({name for _, problem in problems for path in problem.domains for name in path.split(" -> ")[1:2]})
            raise ValueError(
                f"data: none of {len(problems)} problems is left by min_difficulty {self.min_difficulty}, "
                f"max_difficulty {self.max_difficulty} and domains {self.domains or 'all'}; they {there}, "
                f"in {', '.join(names) or 'no domain'}."
            )
        return kept

    def _passes(self, problem: OlympiadProblem) -> bool:
        # Framed by `> ` and ` -`, every name of a path has the same delimiters, the first and the last too.
        # Whole names: Algebra does not match Intermediate Algebra.
        named = [name for name in self.domains or [] if any(f"> {name} -" in f"> {path} -" for path in problem.domains)]
        return self.min_difficulty <= problem.difficulty <= self.max_difficulty and (bool(named) or not self.domains)
