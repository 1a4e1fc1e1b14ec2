"""Modular arithmetic in reverse Polish notation as samples: an endless training stream and fixed evaluation sets.

Which set an expression belongs to is a hash of its text: of all expressions, however many operators they have, one tenth is
for validation, one tenth for tests and the rest for training. So the sets are disjoint whatever a run draws, and the few
expressions of one operator are not used up by evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from hashlib import sha256
from random import Random
from typing import Literal

from torch.utils.data import Dataset

from lit_rl.tasks.rpn import RPNGrammar, derivation, generate, write_prompt, write_steps
from lit_rl.types import Sample

Split = Literal["train", "val", "test"]

_HELD_OUT: dict[int, Split] = {0: "val", 1: "test"}
"""Tenths of the hashes that training never sees."""
_MAX_ATTEMPTS = 1000


class RPNProblems(Dataset[Sample]):
    """Problems of one split, of which each is a function of the seed, its index and the grammar alone.

    As with `ArithmeticProblems` an index of ``size`` or more is a problem too, and assigning ``grammar`` changes later items,
    in workers that are started after it.

    Args:
        grammar: which expressions are drawn.
        size: problems in an epoch.
        seed: two seeds give two unrelated sequences of problems.
        split: the set that the problems belong to.
    """

    def __init__(self, grammar: RPNGrammar, size: int, seed: int, split: Split = "train") -> None:
        if size < 1:
            raise ValueError(f"RPNProblems size={size}: write 1 or more.")
        self.grammar, self.size, self.seed, self.split = grammar, size, seed, split

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Sample]:
        # Without it Python would iterate until an index fails, and none does.
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"RPNProblems index={index}: write 0 or more.")
        return self.draw(index, frozenset())

    def draw(self, index: int, taken: Set[str]) -> Sample:
        """Draw a problem of the split whose prompt is not among the taken ones."""
        for attempt in range(_MAX_ATTEMPTS):
            # A text as seed is hashed the same in every process; a tuple is not.
            expression = generate(self.grammar, Random(f"{self.seed}/{index}/{attempt}"))
            prompt = write_prompt(expression)
            if prompt not in taken and split_of(prompt) == self.split:
                _, *steps = derivation(expression, self.grammar.modulus)
                return Sample(prompt, write_steps(steps), steps[-1][0], index)
        raise ValueError(
            f"The grammar is too small: {_MAX_ATTEMPTS} draws for {self.split} problem {index} gave no new one; "
            f"allow more operations or operators, a larger modulus, or fewer problems. {self.grammar}"
        )


def split_of(prompt: str) -> Split:
    """The set that a problem belongs to, the same in every process."""
    # Python's own hash of a text differs from one process to the next.
    return _HELD_OUT.get(int.from_bytes(sha256(prompt.encode()).digest()[:8], "big") % 10, "train")


def held_out_problems(grammar: RPNGrammar, count: int, split: Split) -> list[Sample]:
    """A fixed set of distinct problems for evaluation, numbered from 0.

    Raises:
        ValueError: where the grammar does not give that many.
    """
    problems = RPNProblems(grammar, count, 0, split)
    samples: dict[str, Sample] = {}
    for index in range(count):
        sample = problems.draw(index, samples.keys())
        samples[sample.prompt] = sample
    return list(samples.values())
