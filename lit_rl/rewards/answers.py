"""Rewards of arithmetic: is the final number right, and does it stand where it belongs?"""

from __future__ import annotations

from fractions import Fraction

from lit_rl.rewards.base import AnswerReward
from lit_rl.tasks.numbers import DigitOrder, read_number
from lit_rl.types import Sample


class ArithmeticAnswer(AnswerReward[Fraction]):
    """1 if the completion ends and its answer has the value of the reference, else 0.

    The answer is the whole completion if the prompt ends with the marker, otherwise the text after the completion's only
    marker. It must be a canonical number (``-12``, ``1/3``) and nothing else: spaces, ``+10``, ``1e1``, ``3.0``, a second
    answer, or a missing end token earn nothing.

    Args:
        marker: text that announces the answer.
        digit_order: ``little`` if numbers are written lowest digit first.
    """

    name = "correct"

    def __init__(self, marker: str = "<answer>", digit_order: DigitOrder = "big") -> None:
        self.marker, self.digit_order = marker, digit_order

    def read(self, text: str, sample: Sample) -> Fraction | None:
        # A prompt that ends with the marker asks for the answer at once; in other prompts the policy writes the marker itself.
        if not sample.prompt.endswith(self.marker):
            _, *answers = text.split(self.marker)
            # Exactly one marker: a policy that may answer twice learns to guess twice.
            if len(answers) != 1:
                return None
            text = answers[0]
        return read_number(text, self.digit_order)

    def reasoning(self, text: str) -> str:
        return text.rpartition(self.marker)[0]

    def is_right(self, answer: Fraction | None, sample: Sample) -> bool:
        truth = read_number(sample.reference, self.digit_order)
        if truth is None:
            raise ValueError(
                f"the reference {sample.reference!r} of sample {sample.number} is not a number in digit_order "
                f"{self.digit_order}; set digit_order of the reward and of the evaluation as in the data."
            )
        # By value: `1/2` answers a reference of `2/4`.
        return answer == truth


class ArithmeticFormat(ArithmeticAnswer):
    """1 if the completion ends and holds an answer in the right form, be it right or wrong, else 0.

    Args:
        marker: text that announces the answer.
        digit_order: ``little`` if numbers are written lowest digit first.
    """

    name = "format"

    def is_right(self, answer: Fraction | None, sample: Sample) -> bool:
        return answer is not None
