"""Arithmetic problems as samples: an endless stream that is drawn on the fly, and a fixed held-out set.

    prompt  <bos><big>12+34*5<answer>                completion  182
    prompt  <bos><big>12+34*5<scratchpad>            completion  34*5=170,12+170=182<answer>182

``<little>`` stands for ``<big>`` where digits run from the lowest up, in the expression, the steps and the result
alike. The end token is left to the collation, which knows where a completion ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from random import Random
from typing import Literal, get_args

from torch.utils.data import Dataset

from lit_rl.tasks.infix import Grammar, Node, canonical, generate, show
from lit_rl.tasks.numbers import DigitOrder, write_number
from lit_rl.tasks.scratchpad import steps
from lit_rl.types import Sample

Scratchpad = Literal["none", "steps", "columns"]

_MAX_ATTEMPTS = 1000


class ArithmeticProblems(Dataset[Sample]):
    """Problems of which each is a function of the seed, its index and the grammar alone.

    So they are the same in every loader worker, on every rank and after a restart. An index of ``size`` or more is a
    problem too; the size only sets the length of an epoch.

    For a curriculum, assign ``grammar``: later items follow the new one. Loader workers hold a copy from when they
    were started, so assign it before an epoch whose workers are started anew.
    """

    def __init__(
        self,
        grammar: Grammar,
        size: int,
        seed: int,
        digit_order: DigitOrder = "big",
        scratchpad: Scratchpad = "none",
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        """Describe the problems.

        Args:
            grammar: Which expressions are drawn.
            size: Problems in an epoch.
            seed: Two seeds give two unrelated sequences of problems.
            digit_order: "big" writes the highest digit first, "little" the lowest.
            scratchpad: "none" asks for the result at once, "steps" for a statement per operator before it, "columns"
                also for the columns of sums and differences.
            held_out: Canonical texts of problems that are never given.
        """
        if size < 1:
            raise ValueError(f"ArithmeticProblems size={size}: write 1 or more.")
        if digit_order not in get_args(DigitOrder):
            raise ValueError(f"ArithmeticProblems digit_order={digit_order!r}: write 'big' or 'little'.")
        if scratchpad not in get_args(Scratchpad):
            raise ValueError(f"ArithmeticProblems scratchpad={scratchpad!r}: write 'none', 'steps' or 'columns'.")
        self.grammar = grammar
        self.size = size
        self.seed = seed
        self.digit_order: DigitOrder = digit_order
        self.scratchpad: Scratchpad = scratchpad
        self.held_out = held_out

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Sample]:
        # Without it Python would iterate until an index fails, and none does.
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"ArithmeticProblems index={index}: write 0 or more.")
        _, sample = self.draw(index, self.held_out)
        return sample

    def draw(self, index: int, taken: Set[str]) -> tuple[str, Sample]:
        """Draw a problem that is not among the taken ones.

        Returns:
            The canonical text of the problem, and the problem.
        """
        for attempt in range(_MAX_ATTEMPTS):
            # A text as seed is hashed the same in every process; a tuple is not.
            rng = Random(f"{self.seed}/{index}/{attempt}")
            node = generate(self.grammar, rng)
            key = canonical(node)
            if key not in taken:
                return key, self._sample(node, index, rng)
        raise ValueError(
            f"The grammar is too small: {_MAX_ATTEMPTS} draws for problem {index} all fell on {len(taken)} taken ones; "
            f"allow more digits, depth or operators, or fewer problems. {self.grammar}"
        )

    def _sample(self, node: Node, index: int, rng: Random) -> Sample:
        order = self.digit_order
        expression = show(node, self.grammar, order, rng)
        result = write_number(node.value, order)
        if self.scratchpad == "none":
            return Sample(f"<bos><{order}>{expression}<answer>", result, result, index)
        work = steps(node, order, columns=self.scratchpad == "columns")
        return Sample(f"<bos><{order}>{expression}<scratchpad>", f"{work}<answer>{result}", result, index)


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
        grammar: Which expressions are drawn.
        count: How many problems; a ``ValueError`` where the grammar cannot give that many.
        seed: Chooses the set.
        digit_order: As in ``ArithmeticProblems``.
        scratchpad: As in ``ArithmeticProblems``.
        exclude: Canonical texts that must not be drawn, such as those of another evaluation set.

    Returns:
        The problems, numbered from 0, and their canonical texts, to be held out of training.
    """
    problems = ArithmeticProblems(grammar, count, seed, digit_order, scratchpad)
    taken = set(exclude)
    samples = []
    for index in range(count):
        key, sample = problems.draw(index, taken)
        taken.add(key)
        samples.append(sample)
    return samples, frozenset(taken - exclude)
