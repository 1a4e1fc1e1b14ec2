"""Modular arithmetic in reverse Polish notation, generated while it is consumed; training never sees evaluation's problems."""

from __future__ import annotations

from typing import Any

from lit_rl.tasks.rpn import RPNGrammar
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems

from .generated import GeneratedData


class RPN(GeneratedData[RPNGrammar]):
    """Expressions such as ``<boe> 2 3 + 4 +`` and their derivations ``= 5 4 + = 9``, for SFT and reinforcement learning.

    The policy's tokenizer must have the modulus: ``rpn13`` or ``rpn113``.

    Args:
        grammar: distribution of the expressions; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
    """

    def __init__(self, grammar: RPNGrammar | None = None, *, levels: list[RPNGrammar] | None = None, **options: Any) -> None:
        super().__init__(grammar or RPNGrammar(), levels, **options)
        moduli = {level.modulus for level in self.levels}
        if len(moduli) > 1:  # prompts do not say the modulus, so that one prompt would have several values
            raise ValueError(f"data.levels have moduli {sorted(moduli)}; write the grammar's {self.grammar.modulus} in all.")

    def setup(self, stage: str) -> None:
        # The hash of a prompt decides its set, so training needs no list of held-out problems.
        self.val_set = held_out_problems(self.grammar, self.val_problems, "val")
        self.test_set = held_out_problems(self.grammar, self.test_problems, "test")
        self.problems = RPNProblems(self.levels[self.level], self.epoch_size, self.seed)
        self.train_set = self.problems
