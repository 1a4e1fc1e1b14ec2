"""Rewards for answers that can be checked: is the final number right, and is it where it belongs?"""

from __future__ import annotations

from collections.abc import Hashable

from lit_rl.rewards.base import AnswerReward
from lit_rl.rollouts import Rollouts
from lit_rl.tasks.numbers import DigitOrder, read_number
from lit_rl.types import Sample


class ArithmeticAnswer(AnswerReward):
    """1 where the completion ends and its answer has the value of the reference, else 0.

    The answer is what follows the marker: the whole completion where the prompt ends with the marker, otherwise the
    text behind the completion's only marker. It must be a canonical number (``-12``, ``1/3``) and nothing else: spaces,
    ``+10``, ``1e1``, ``3.0``, a second answer, or no end token earn nothing.

    Args:
        marker: what announces the answer.
        digit_order: ``little`` where numbers are written lowest digit first.
    """

    name = "correct"

    def __init__(self, marker: str = "<answer>", digit_order: DigitOrder = "big") -> None:
        self.marker, self.digit_order = marker, digit_order

    def answers(self, rollouts: Rollouts) -> list[Hashable | None]:
        """The answer of each completion in a form that compares by value; None where there is none."""
        rows = zip(rollouts.texts, rollouts.samples, rollouts.truncated.tolist(), strict=True)
        return [None if cut else self.read(text, sample) for text, sample, cut in rows]

    def read(self, text: str, sample: Sample) -> Hashable | None:
        """The answer in one finished completion."""
        if not sample.prompt.endswith(self.marker):
            _, *answers = text.split(self.marker)
            if len(answers) != 1:
                return None
            text = answers[0]
        return read_number(text, self.digit_order)

    def is_right(self, answer: Hashable | None, sample: Sample) -> bool:
        """Whether an answer has the value of the sample's reference."""
        truth = read_number(sample.reference, self.digit_order)
        if truth is None:
            raise ValueError(
                f"the reference {sample.reference!r} of sample {sample.number} is no number in digit_order {self.digit_order}; "
                "set digit_order of the reward and of the evaluation as in the data."
            )
        return answer == truth


class ArithmeticFormat(ArithmeticAnswer):
    """1 where the completion ends and holds an answer in the right form, be it right or wrong.

    Args:
        marker: what announces the answer.
        digit_order: ``little`` where numbers are written lowest digit first.
    """

    name = "format"

    def is_right(self, answer: Hashable | None, sample: Sample) -> bool:
        return answer is not None
