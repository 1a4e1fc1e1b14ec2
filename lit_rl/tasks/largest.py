"""Questions for the largest of a few numbers, in words: an endless training stream and fixed evaluation sets.

    question  Which is the largest number: 523, 871, 406 or 118? Answer with the number alone.        completion  871

A pretrained model of any size can read the question, and a small one often gets it wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from lit_rl.tasks.generated import GeneratedProblems
from lit_rl.text.hash_split import hash_share
from lit_rl.types import Sample

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class NumberList:
    """Numbers of a question, all different and of the same number of digits."""

    count: int = 4
    """Numbers to choose from."""
    digits: int = 3
    """Digits of each number."""

    def __post_init__(self) -> None:
        if self.count < 2 or self.digits < 1:
            raise ValueError(f"NumberList count={self.count} digits={self.digits}: write at least 2 numbers of 1 digit.")
        if self.count > 9 * 10 ** (self.digits - 1):
            raise ValueError(f"NumberList count={self.count}: there are not as many numbers of {self.digits} digits.")


class LargestNumberProblems(GeneratedProblems[NumberList, list[int]]):
    """Questions of one split; the key of a question is its text.

    Args:
        grammar: distribution of the numbers.
        size: questions in an epoch.
        seed: seeds the sequence of questions.
        write: turns a question into a prompt, special tokens written out.
        split: set that the questions belong to: of all questions a tenth each for validation and for tests.
    """

    remedy = "more numbers or digits"

    def __init__(self, grammar: NumberList, size: int, seed: int, write: Callable[[str], str], split: Split = "train") -> None:
        super().__init__(grammar, size, seed)
        self.write, self.split, self.kind = write, split, f"{split} problem"

    def _generate(self, rng: Random) -> list[int]:
        lowest = 10 ** (self.grammar.digits - 1)
        return rng.sample(range(lowest, 10 * lowest), self.grammar.count)

    def _key(self, expression: list[int]) -> str:
        *others, last = map(str, expression)
        return f"Which is the largest number: {', '.join(others)} or {last}? Answer with the number alone."

    def _belongs(self, key: str) -> bool:
        share = hash_share(key)
        return self.split == ("val" if share < 0.1 else "test" if share < 0.2 else "train")

    def _sample(self, expression: list[int], index: int, rng: Random) -> Sample:
        largest = str(max(expression))
        return Sample(self.write(self._key(expression)), largest, largest, index)
