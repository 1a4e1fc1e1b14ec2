"""Random arithmetic, generated while it is consumed, with fixed evaluation sets that training never sees."""

from __future__ import annotations

from typing import Any

from lit_rl.tasks.infix import Grammar
from lit_rl.tasks.numbers import DigitOrder
from lit_rl.tasks.problems import ArithmeticProblems, Scratchpad, held_out_problems

from .base import PromptDataModule
from .positions import PositionSpec

HELD_OUT_SEED = 20_240_000
"""Of the evaluation sets: they are the same in every run, whatever its seed."""


class Arithmetic(PromptDataModule):
    """Infix expressions with exact values, for SFT and reinforcement learning alike.

    Args:
        grammar: which expressions are drawn; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
        digit_order: ``big`` writes the highest digit first, ``little`` the lowest.
        scratchpad: ``none`` asks for the result at once, ``steps`` for a statement per operator before it, ``columns``
            for the columns of sums and differences too.
        epoch_size: problems in an epoch; every epoch has new ones.
        val_problems: size of the validation set.
        test_problems: size of the test set.
        batch_size: prompts per batch, over all ranks: one optimizer step of SFT, one rollout of reinforcement learning.
        eval_batch_size: problems that are answered at a time in evaluation, on each rank.
        num_workers: loader processes per rank; 0 prepares batches in the main process.
        group_by_length: put texts of like length into one batch (SFT: less padding).
        seed: of the training problems; linked to ``seed_everything`` on the command line.
        positions: positions inside the solutions of one epoch's problems in place of whole problems, for RPT.
    """

    endless = True

    def __init__(
        self,
        grammar: Grammar | None = None,
        levels: list[Grammar] | None = None,
        digit_order: DigitOrder = "big",
        scratchpad: Scratchpad = "none",
        epoch_size: int = 100_000,
        val_problems: int = 1000,
        test_problems: int = 1000,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        group_by_length: bool = False,
        seed: int = 0,
        positions: PositionSpec | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, group_by_length, seed)
        self.grammar = grammar or Grammar()
        self.levels = [*(levels or []), self.grammar]
        self.digit_order, self.scratchpad = digit_order, scratchpad
        self.epoch_size, self.val_problems, self.test_problems = epoch_size, val_problems, test_problems
        self.level = 0
        self.positions = positions

    def setup(self, stage: str) -> None:
        val, val_keys = self._held_out(self.val_problems, HELD_OUT_SEED, frozenset())
        test, test_keys = self._held_out(self.test_problems, HELD_OUT_SEED + 1, val_keys)
        self.val_set, self.test_set = val, test
        self.problems = ArithmeticProblems(
            self.levels[self.level],
            self.epoch_size,
            self.seed,
            digit_order=self.digit_order,
            scratchpad=self.scratchpad,
            held_out=val_keys | test_keys,
        )
        self.train_set = self.problems
        if self.positions:
            self.take_positions(self.positions)

    def set_level(self, level: int) -> None:
        """Train on this level (0 is the first) from the next epoch on."""
        self.level = level
        self.problems.grammar = self.levels[level]

    def _held_out(self, count: int, seed: int, exclude: frozenset[str]) -> Any:
        return held_out_problems(self.grammar, count, seed, self.digit_order, self.scratchpad, exclude)
