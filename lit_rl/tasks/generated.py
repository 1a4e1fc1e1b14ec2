"""Generated problems: an endless data set whose items are computed when they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from random import Random
from typing import ClassVar, Generic, TypeVar

from torch.utils.data import Dataset

from lit_rl.types import Sample

GrammarT = TypeVar("GrammarT")
ExpressionT = TypeVar("ExpressionT")

MAX_ATTEMPTS = 1000
"""Draws of one problem after which the grammar counts as used up."""


class GeneratedProblems(Dataset[Sample], ABC, Generic[GrammarT, ExpressionT]):
    """Problems that are functions of seed, index and grammar alone: equal in every worker, on every rank, after a restart.

    An index of ``size`` or more is a problem too. For a curriculum, assign ``grammar``: later items follow the new one.
    Workers hold a copy from their start, so assign it before an epoch that starts new workers.

    Args:
        grammar: distribution of the expressions.
        size: problems in an epoch.
        seed: seeds the sequence of problems; the sequences of two seeds are unrelated.
        taken: keys of problems that no item repeats.
    """

    kind: str = "problem"
    """Name of an item in messages."""
    remedy: ClassVar[str]
    """Change of a grammar that has too few expressions."""

    def __init__(self, grammar: GrammarT, size: int, seed: int, taken: Set[str] = frozenset()) -> None:
        if size < 1:
            raise ValueError(f"{type(self).__name__} size={size}: write 1 or more.")
        self.grammar, self.size, self.seed, self.taken = grammar, size, seed, taken

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Sample]:
        # Without this method Python would iterate until an index fails, and none does.
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"{type(self).__name__} index={index}: write 0 or more.")
        _, sample = self._draw(index, self.taken)
        return sample

    def distinct(self) -> dict[str, Sample]:
        """The first ``size`` problems by their keys, drawn so that no two are equal.

        Raises:
            ValueError: if the grammar has too few expressions.
        """
        samples: dict[str, Sample] = {}
        # Here an item depends on the items before it, which a set that is read in any order cannot have.
        taken = set(self.taken)
        for index in range(self.size):
            key, samples[key] = self._draw(index, taken)
            taken.add(key)
        return samples

    def _draw(self, index: int, taken: Set[str]) -> tuple[str, Sample]:
        """Key and sample of the first expression that is not taken and belongs here."""
        # Bounded: a grammar of few expressions may have none left, and would be searched for ever.
        for attempt in range(MAX_ATTEMPTS):
            # A seed that is a text is hashed alike in every process; a tuple is not.
            rng = Random(f"{self.seed}/{index}/{attempt}")
            expression = self._generate(rng)
            key = self._key(expression)
            # The key and not the text: other spaces do not make another problem.
            if key not in taken and self._belongs(key):
                return key, self._sample(expression, index, rng)
        raise ValueError(
            f"The grammar is too small: {MAX_ATTEMPTS} draws for {self.kind} {index} gave no new one; "
            f"allow {self.remedy}, or fewer problems. {self.grammar}"
        )

    @abstractmethod
    def _generate(self, rng: Random) -> ExpressionT:
        """Draw an expression."""

    @abstractmethod
    def _key(self, expression: ExpressionT) -> str:
        """Text that is equal for equal problems."""

    def _belongs(self, key: str) -> bool:
        """Whether a problem is in this set."""
        return True

    @abstractmethod
    def _sample(self, expression: ExpressionT, index: int, rng: Random) -> Sample:
        """Write an expression as a problem."""
