r"""Demonstrations of reasoning before a prediction, on arithmetic: a model learns from them before RPT can improve it.

    plain      <bos><big>57+68<answer>                     125
    reasoned   <bos><big>57+68<answer>1<think>             521</think>\boxed{25}

The reasoning is the result from the lowest digit up, the order in which sums are worked; the prediction is one or more of the
characters that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from torch.utils.data import Dataset

from lit_rl.tasks.infix import Grammar
from lit_rl.text.token_bytes import write_pieces
from lit_rl.types import Sample

from .arithmetic import Arithmetic


class Demonstrations(Dataset[Sample]):
    """Problems, a share of them asked in the middle of the result; a problem alone decides how it is asked.

    Args:
        problems: whole problems without scratchpad.
        share: share of the problems that become demonstrations.
    """

    def __init__(self, problems: Sequence[Sample] | Dataset[Sample], share: float) -> None:
        self.problems, self.share = problems, share

    def __len__(self) -> int:
        return len(self.problems)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.problems[index]
        # Drawn from the prompt: the problem is asked alike in every worker and after a restart.
        return demonstrate(sample) if Random(f"{sample.prompt}/kind").random() < self.share else sample


def demonstrate(sample: Sample) -> Sample:
    """Reasoning and prediction at a random place of the problem's result."""
    # Another seed than the kind's: that draw is below `share` for every demonstration, so places would not be uniform.
    draw, result = Random(f"{sample.prompt}/place"), sample.completion
    place = draw.randrange(len(result))
    said = result[place : draw.randint(place + 1, len(result))]
    # The whole rest: a prediction may say more or fewer characters than the demonstration does.
    reference = write_pieces([character.encode() for character in result[place:]])
    return Sample(
        f"{sample.prompt}{result[:place]}<think>", f"{result[::-1]}</think>\\boxed{{{said}}}", reference, sample.number
    )


class ReasonedArithmetic(Arithmetic):
    """Plain problems and demonstrations of reasoning, mixed, for SFT; evaluation asks for reasoning alone.

    The options are `Arithmetic`'s; ``positions`` and ``scratchpad`` have no meaning here and are refused.
    """

    share = 0.5
    """Share of demonstrations among the training samples."""

    def __init__(self, grammar: Grammar | None = None, **options: Any) -> None:
        super().__init__(grammar, **options)
        if self.positions is not None or self.scratchpad != "none":
            raise ValueError(
                "ReasonedArithmetic asks inside the result of whole problems: leave data.positions and data.scratchpad out."
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train_set = Demonstrations(self.train_set, self.share)
        self.val_set, self.test_set = ([demonstrate(sample) for sample in kept] for kept in (self.val_set, self.test_set))
