"""Stories as samples: an endless training stream and fixed evaluation sets, held apart by their plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from lit_rl.tasks.generated import GeneratedProblems
from lit_rl.tasks.largest import Split
from lit_rl.tasks.stories import STYLES, Story, StoryGrammar, answer, draw_story
from lit_rl.text.hash_split import hash_share
from lit_rl.types import Sample


class Stories(GeneratedProblems[StoryGrammar, Story]):
    """Stories of one split, each asked in one of the styles, drawn for it; the key of a story is its plot.

    Args:
        grammar: distribution of the stories.
        size: stories in an epoch.
        seed: seeds the sequence of stories.
        write: (question, text of its style) -> prompt, special tokens written out.
        styles: names of the styles; empty: questions are asked without a style, and solved by steps alone.
        split: set that the stories belong to: of all plots a tenth each for validation and for tests.
    """

    remedy = "more operations or larger numbers"

    def __init__(
        self,
        grammar: StoryGrammar,
        size: int,
        seed: int,
        write: Callable[[str, str], str],
        styles: Sequence[str] = tuple(STYLES),
        split: Split = "train",
    ) -> None:
        super().__init__(grammar, size, seed)
        self.write, self.styles, self.split, self.kind = write, styles, split, f"{split} story"

    def _generate(self, rng: Random) -> Story:
        return draw_story(self.grammar, rng)

    def _key(self, expression: Story) -> str:
        return expression.plot

    def _belongs(self, key: str) -> bool:
        share = hash_share(key)
        return self.split == ("val" if share < 0.1 else "test" if share < 0.2 else "train")

    def _sample(self, expression: Story, index: int, rng: Random) -> Sample:
        # The generator that drew the story goes on, so the style too is a function of seed and index.
        style = rng.choice(self.styles) if self.styles else ""
        question, reference = expression.question, str(answer(expression.operands))
        prompt = self.write(question, STYLES.get(style, ""))
        return Sample(prompt, expression.solution(style), reference, index, question=question)
