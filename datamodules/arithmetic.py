"""Random arithmetic, generated while it is consumed, with fixed evaluation sets that training never sees."""

from __future__ import annotations

from functools import partial
from typing import Any

from lit_rl.tasks.infix import Grammar
from lit_rl.tasks.numbers import DigitOrder
from lit_rl.tasks.problems import ArithmeticProblems, Scratchpad, held_out_problems

from .generated import GeneratedData
from .positions import PositionSpec

HELD_OUT_SEED = 20_240_000
"""Seed of the evaluation sets, whatever the seed of the run."""


class Arithmetic(GeneratedData[Grammar]):
    """Infix expressions with exact values, for SFT and reinforcement learning alike.

    Args:
        grammar: distribution of the expressions; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
        digit_order: ``big`` writes the highest digit first, ``little`` the lowest.
        scratchpad: ``none`` asks for the result at once, ``steps`` for a statement per operator before it, ``columns``
            for the columns of sums and differences too.
        positions: positions inside the solutions of one epoch's problems in place of whole problems, for RPT.
    """

    def __init__(
        self,
        grammar: Grammar | None = None,
        *,
        levels: list[Grammar] | None = None,
        digit_order: DigitOrder = "big",
        scratchpad: Scratchpad = "none",
        positions: PositionSpec | None = None,
        **options: Any,
    ) -> None:
        super().__init__(grammar or Grammar(), levels, **options)
        self.digit_order, self.scratchpad, self.positions = digit_order, scratchpad, positions

    def setup(self, stage: str) -> None:
        # Evaluation follows neither the level nor the run's seed: runs of one grammar answer the same problems.
        draw = partial(held_out_problems, self.grammar, digit_order=self.digit_order, scratchpad=self.scratchpad)
        self.val_set, val_keys = draw(self.val_problems, HELD_OUT_SEED)
        self.test_set, test_keys = draw(self.test_problems, HELD_OUT_SEED + 1, exclude=val_keys)
        self.problems = ArithmeticProblems(
            # A second `setup`, such as the one of `test` after `fit`, keeps the level that the curriculum reached.
            self.levels[self.level],
            self.epoch_size,
            self.seed,
            digit_order=self.digit_order,
            scratchpad=self.scratchpad,
            # Canonical texts: spaces and redundant parentheses must not carry a held-out problem into training.
            held_out=val_keys | test_keys,
        )
        self.train_set = self.problems
        if self.positions:
            self.take_positions(self.positions)
