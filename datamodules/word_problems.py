"""Base of data sets of problems in words: files or `datasets`, held-out problems by hash, prompts, positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from lightning.pytorch.utilities import rank_zero_info

from lit_rl.text.chat import ask
from lit_rl.text.hash_split import hash_share
from lit_rl.types import Sample

from .base import PromptDataModule
from .jsonl import Malformed, load_hub, read_jsonl, read_rows, thin_out
from .positions import PositionSpec

SetName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Problem:
    """A problem in words, with its worked solution."""

    question: str
    solution: str
    answer: str
    """The final answer alone, which rewards compare with."""


ProblemT = TypeVar("ProblemT", bound=Problem)


class WordProblems(PromptDataModule, ABC, Generic[ProblemT]):
    """Problems in words for SFT and reinforcement learning, and with ``positions`` for Reinforcement Pre-Training.

    Args:
        path: the files; none: load ``dataset``.
        dataset: a name or folder for `datasets`.
        malformed: ``refuse`` stops at a malformed row, ``skip`` leaves malformed rows out and reports their numbers.
        chat: ask in the tokenizer's chat template, if it has one.
        eval_problems: problems of the validation set and of the test set, evenly spread; 0 takes all of them.
        positions: positions inside the solutions in place of whole problems, for RPT; their context is the bare problem and
            the solution so far.
    """

    instruction: ClassVar[str]
    """Form of the solution that a prompt asks for."""
    hub_config: ClassVar[str | None] = None
    """Config of ``dataset``."""
    remedy: ClassVar[str]
    """Options to change if a set is empty."""

    def __init__(
        self,
        path: str | None,
        dataset: str,
        *,
        malformed: Malformed = "refuse",
        chat: bool = True,
        eval_problems: int = 0,
        positions: PositionSpec | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path, self.dataset, self.malformed = path, dataset, malformed
        self.chat, self.eval_problems, self.positions = chat, eval_problems, positions

    def prepare_data(self) -> None:
        if not self.path:
            rank_zero_info(f"data: {self.dataset} is downloaded, unless `datasets` has it in its cache")
        self._open()  # reads nothing yet, but refuses missing files and data sets

    def setup(self, stage: str) -> None:
        # Numbered before problems are filtered or divided: sampling is keyed by the number.
        sets = self._divide({name: list(enumerate(problems)) for name, problems in self._open().items()})
        if not all(sets.values()):
            train, val, test = (len(sets[name]) for name in ("train", "val", "test"))
            raise ValueError(
                f"data: {train} training, {val} validation and {test} test problems, but no set may be empty; {self.remedy}."
            )
        self.train_set = self._samples(sets["train"])  # type: ignore[assignment]  # a list serves
        # Thinned out evenly, not cut: files may be sorted by difficulty or topic.
        self.val_set = self._samples(thin_out(sets["val"], self.eval_problems))
        self.test_set = self._samples(thin_out(sets["test"], self.eval_problems))
        if self.positions:
            self.take_positions(self.positions)

    @abstractmethod
    def _files(self, path: Path) -> dict[str, Path]:
        """Files of the data set by the names of their parts."""

    @abstractmethod
    def _tables(self, splits: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Rows of the splits of `datasets`, by the same names."""

    @abstractmethod
    def _read(self, row: Any) -> ProblemT:
        """Turn a row into a problem.

        Raises:
            ValueError: if the row is malformed.
        """

    @abstractmethod
    def _divide(self, parts: dict[str, list[tuple[int, ProblemT]]]) -> dict[SetName, list[tuple[int, ProblemT]]]:
        """Divide the parts, whose problems are numbered from 0, into the three sets."""

    def _open(self) -> dict[str, Iterator[ProblemT]]:
        """The problems of each part, read when they are iterated."""
        if self.path:
            return {name: read_jsonl(file, self._read, self.malformed) for name, file in self._files(Path(self.path)).items()}
        tables = self._tables(load_hub(self.dataset, self.hub_config))
        return {name: read_rows(rows, self._read, self.malformed, f"{self.dataset} ({name})") for name, rows in tables.items()}

    def _samples(self, problems: list[tuple[int, ProblemT]]) -> list[Sample]:
        return [
            Sample(self._prompt(each.question), each.solution, each.answer, number, question=each.question)
            for number, each in problems
        ]

    def _prompt(self, question: str) -> str:
        if self.positions:  # the policy's RPT template asks
            return f"{question}\n\n"
        # Special tokens are written out, as `collate` adds none.
        return ask(f"{question}\n\n{self.instruction}", self.tokenizer, self.chat)


def set_of(question: str, val_share: float, test_share: float = 0.0) -> SetName:
    """Set of a problem by the hash of its text: equal in every run, whatever other problems there are."""
    place = hash_share(question)
    return "val" if place < val_share else "test" if place < val_share + test_share else "train"
