"""Modular arithmetic in reverse Polish notation, generated while it is consumed; training never sees evaluation's problems."""

from __future__ import annotations

from lit_rl.tasks.rpn import RPNGrammar
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems

from .base import PromptDataModule


class RPN(PromptDataModule):
    """Expressions such as ``<boe> 2 3 + 4 +`` and their derivations ``= 5 4 + = 9``, for SFT and reinforcement learning.

    The policy's tokenizer must have the modulus: ``rpn13`` or ``rpn113``.

    Args:
        grammar: which expressions are drawn; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
        epoch_size: problems in an epoch; every epoch has new ones.
        val_problems: size of the validation set.
        test_problems: size of the test set.
        batch_size: prompts per batch, over all ranks: one optimizer step of SFT, one rollout of reinforcement learning.
        eval_batch_size: problems that are answered at a time in evaluation, on each rank.
        num_workers: loader processes per rank; 0 prepares batches in the main process.
        group_by_length: put texts of like length into one batch (SFT: less padding).
        seed: of the training problems; linked to ``seed_everything`` on the command line.
    """

    endless = True

    def __init__(
        self,
        grammar: RPNGrammar | None = None,
        levels: list[RPNGrammar] | None = None,
        epoch_size: int = 100_000,
        val_problems: int = 1000,
        test_problems: int = 1000,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        group_by_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, group_by_length, seed)
        self.grammar = grammar or RPNGrammar()
        self.levels = [*(levels or []), self.grammar]
        moduli = {level.modulus for level in self.levels}
        if len(moduli) > 1:  # the text does not say the modulus, so that one prompt would have several values
            raise ValueError(f"data.levels have moduli {sorted(moduli)}; write the grammar's {self.grammar.modulus} in all.")
        self.epoch_size, self.val_problems, self.test_problems = epoch_size, val_problems, test_problems
        self.level = 0

    def setup(self, stage: str) -> None:
        self.val_set = held_out_problems(self.grammar, self.val_problems, "val")
        self.test_set = held_out_problems(self.grammar, self.test_problems, "test")
        self.problems = RPNProblems(self.levels[self.level], self.epoch_size, self.seed)
        self.train_set = self.problems

    def set_level(self, level: int) -> None:
        """Train on this level (0 is the first) from the next epoch on."""
        self.level = level
        self.problems.grammar = self.levels[level]
