"""Arithmetic problems as samples: an endless training stream and fixed held-out sets.

    prompt  <bos><big>12+34*5<answer>                completion  182
    prompt  <bos><big>12+34*5<scratchpad>            completion  34*5=170,12+170=182<answer>182

``<little>`` replaces ``<big>`` if digits run from the lowest up, in expression, steps and result alike. Completions have no
end token: the collation adds it.
"""

from __future__ import annotations

from random import Random
from typing import Literal, get_args

from lit_rl.tasks.generated import GeneratedProblems
from lit_rl.tasks.infix import Grammar, Node, canonical, generate, show
from lit_rl.tasks.numbers import DigitOrder, write_number
from lit_rl.tasks.scratchpad import steps
from lit_rl.types import Sample

Scratchpad = Literal["none", "steps", "columns"]


class ArithmeticProblems(GeneratedProblems[Grammar, Node]):
    """Infix expressions with their values; the key of a problem is its canonical text.

    Args:
        grammar: distribution of the expressions, spaces and parentheses.
        size: problems in an epoch.
        seed: seeds the sequence of problems; the sequences of two seeds are unrelated.
        digit_order: "big" writes the highest digit first, "little" the lowest.
        scratchpad: "none" asks for the result at once, "steps" for a statement per operator before it, "columns"
            also for the columns of sums and differences.
        held_out: canonical texts of problems that are never given.
    """

    remedy = "more digits, depth or operators"

    def __init__(
        self,
        grammar: Grammar,
        size: int,
        seed: int,
        digit_order: DigitOrder = "big",
        scratchpad: Scratchpad = "none",
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(grammar, size, seed, held_out)
        if digit_order not in get_args(DigitOrder):
            raise ValueError(f"ArithmeticProblems digit_order={digit_order!r}: write 'big' or 'little'.")
        if scratchpad not in get_args(Scratchpad):
            raise ValueError(f"ArithmeticProblems scratchpad={scratchpad!r}: write 'none', 'steps' or 'columns'.")
        self.digit_order: DigitOrder = digit_order
        self.scratchpad: Scratchpad = scratchpad

    def _generate(self, rng: Random) -> Node:
        return generate(self.grammar, rng)

    def _key(self, expression: Node) -> str:
        return canonical(expression)

    def _sample(self, expression: Node, index: int, rng: Random) -> Sample:
        order = self.digit_order
        # The generator that drew the expression goes on, so the spaces too are a function of seed and index.
        text = show(expression, self.grammar, order, rng)
        # The reference stands in the digit order of the problem, so a reward must read it in the same order.
        result = write_number(expression.value, order)
        if self.scratchpad == "none":
            return Sample(f"<bos><{order}>{text}<answer>", result, result, index)
        work = steps(expression, order, columns=self.scratchpad == "columns")
        return Sample(f"<bos><{order}>{text}<scratchpad>", f"{work}<answer>{result}", result, index)


def held_out_problems(
    grammar: Grammar,
    count: int,
    seed: int,
    digit_order: DigitOrder = "big",
    scratchpad: Scratchpad = "none",
    exclude: frozenset[str] = frozenset(),
) -> tuple[list[Sample], frozenset[str]]:
    """Draw a fixed set of distinct problems for evaluation.

    Args:
        grammar: distribution of the expressions.
        count: number of problems.
        seed: chooses the set.
        digit_order: order of the digits, see `ArithmeticProblems`.
        scratchpad: form of the completions, see `ArithmeticProblems`.
        exclude: canonical texts that must not be drawn, such as the texts of another evaluation set.

    Returns:
        The problems, numbered from 0, and their canonical texts, to be held out of training.

    Raises:
        ValueError: if the grammar has too few expressions.
    """
    samples = ArithmeticProblems(grammar, count, seed, digit_order, scratchpad, exclude).distinct()
    return list(samples.values()), frozenset(samples)
