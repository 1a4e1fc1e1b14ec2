"""Modular arithmetic in reverse Polish notation as samples: an endless training stream and fixed evaluation sets.

The hash of an expression's text decides its split: of all expressions, however many operators they have, one tenth is
for validation, one tenth for tests and the rest for training. Splits are therefore disjoint whatever a run draws, and
evaluation does not use up the few expressions of one operator.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from lit_rl.tasks.generated import GeneratedProblems
from lit_rl.tasks.rpn import RPNGrammar, derivation, generate, write_prompt, write_steps
from lit_rl.text.hash_split import hash_number
from lit_rl.types import Sample

Split = Literal["train", "val", "test"]

_HELD_OUT: dict[int, Split] = {0: "val", 1: "test"}
"""Splits of the last digits of hashes; training has the other digits."""


class RPNProblems(GeneratedProblems[RPNGrammar, list[str]]):
    """Problems of one split; the key of a problem is its prompt.

    Args:
        grammar: distribution of the expressions.
        size: problems in an epoch.
        seed: seeds the sequence of problems; the sequences of two seeds are unrelated.
        split: set that the problems belong to.
    """

    remedy = "more operations or operators, a larger modulus"

    def __init__(self, grammar: RPNGrammar, size: int, seed: int, split: Split = "train") -> None:
        super().__init__(grammar, size, seed)
        self.split = split
        self.kind = f"{split} problem"

    def _generate(self, rng: Random) -> list[str]:
        return generate(self.grammar, rng)

    def _key(self, expression: list[str]) -> str:
        return write_prompt(expression)

    def _belongs(self, key: str) -> bool:
        return split_of(key) == self.split

    def _sample(self, expression: list[str], index: int, rng: Random) -> Sample:
        _, *steps = derivation(expression, self.grammar.modulus)  # the first expression is the prompt's own
        return Sample(write_prompt(expression), write_steps(steps), steps[-1][0], index)


def split_of(prompt: str) -> Split:
    """Split of a problem, equal in every process."""
    # The prompt without modulus: an expression is in one split whatever the modulus of a run.
    return _HELD_OUT.get(hash_number(prompt, 8) % 10, "train")


def held_out_problems(grammar: RPNGrammar, count: int, split: Split) -> list[Sample]:
    """Draw a fixed set of distinct problems for evaluation, numbered from 0.

    Raises:
        ValueError: if the split has too few expressions of the grammar.
    """
    # Seed 0 whatever the seed of the run: all runs answer the same problems.
    return list(RPNProblems(grammar, count, 0, split).distinct().values())
