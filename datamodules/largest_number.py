"""Questions for the largest of a few numbers, for pretrained models; training never sees evaluation's questions."""

from __future__ import annotations

from functools import partial
from typing import Any

from lit_rl.tasks.largest import LargestNumberProblems, NumberList
from lit_rl.text.chat import ask

from .generated import GeneratedData


class LargestNumber(GeneratedData[NumberList]):
    """Questions such as "Which is the largest number: 523, 871, 406 or 118?" in the tokenizer's chat template.

    Args:
        grammar: how many numbers, of how many digits; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
        chat: ask in the tokenizer's chat template, if it has one.
    """

    def __init__(
        self, grammar: NumberList | None = None, *, levels: list[NumberList] | None = None, chat: bool = True, **options: Any
    ) -> None:
        super().__init__(grammar or NumberList(), levels, **options)
        self.chat = chat

    def setup(self, stage: str) -> None:
        write = partial(ask, tokenizer=self.tokenizer, chat=self.chat)
        # Seed 0 whatever the seed of the run: all runs answer the same questions.
        val = LargestNumberProblems(self.grammar, self.val_problems, 0, write, "val")
        test = LargestNumberProblems(self.grammar, self.test_problems, 0, write, "test")
        self.val_set, self.test_set = list(val.distinct().values()), list(test.distinct().values())
        self.problems = LargestNumberProblems(self.levels[self.level], self.epoch_size, self.seed, write)
        self.train_set = self.problems
