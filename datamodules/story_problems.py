"""Word problems by template, for models from scratch; training never sees a plot of the evaluation's stories."""

from __future__ import annotations

from typing import Any

from lit_rl.tasks.stories import STYLES, StoryGrammar
from lit_rl.tasks.story_problems import Stories
from lit_rl.text.chat import ask, with_style

from .generated import GeneratedData


class StoryProblems(GeneratedData[StoryGrammar]):
    """Stories of a few operations with a question, solved by steps alone or with the reason before each step.

    A solution ends in ``#### <number>``, as GSM8K's do, so that `FinalNumber` judges it. The tokenizer ``stories`` has a token
    for each word. A tokenizer with a chat template asks in it.

    Args:
        grammar: operations and numbers of the stories; evaluation always uses this one.
        levels: easier grammars to train on one after another before ``grammar``, for the `Curriculum` callback.
        styles: styles of which one is drawn for each question, of training and of evaluation, and asked for before it:
            ``precise`` and ``reflective``. Leave them out ([]) if the arms of an `ArmSampler` ask in styles of their own.
    """

    def __init__(
        self,
        grammar: StoryGrammar | None = None,
        *,
        levels: list[StoryGrammar] | None = None,
        styles: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(grammar or StoryGrammar(), levels, **options)
        self.styles = list(STYLES) if styles is None else styles
        for style in self.styles:
            if style not in STYLES:
                raise ValueError(f"data.styles has {style!r}; write {' or '.join(STYLES)}, or [].")

    def setup(self, stage: str) -> None:
        # Seed 0 whatever the seed of the run: all runs answer the same questions.
        val = Stories(self.grammar, self.val_problems, 0, self._prompt, self.styles, "val")
        test = Stories(self.grammar, self.test_problems, 0, self._prompt, self.styles, "test")
        self.val_set, self.test_set = list(val.distinct().values()), list(test.distinct().values())
        self.problems = Stories(self.levels[self.level], self.epoch_size, self.seed, self._prompt, self.styles)
        self.train_set = self.problems

    def _prompt(self, question: str, style: str) -> str:
        # As `ArmSampler` puts a style before a question.
        return with_style(ask(question, self.tokenizer, chat=True), question, style, self.tokenizer)
