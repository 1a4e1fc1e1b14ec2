r"""Rewards for worked solutions: a final number after ``####``, or a final expression in ``\boxed{}``."""

from __future__ import annotations

import re
from fractions import Fraction

from lit_rl.rewards.base import AnswerReward
from lit_rl.rewards.math_judge import equal_answers
from lit_rl.rewards.prefix_match import AnswerFormat
from lit_rl.tasks.numbers import MAX_CHARACTERS
from lit_rl.types import Sample

# [0-9] and not \d, which also matches the digits of other scripts. Commas count in thousands only.
_NUMBER = re.compile(r"\s*([-+]?)\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/([0-9]+))?")
_LAST_BOX = AnswerFormat(after="")


def read_value(text: str) -> Fraction | None:
    """Exact value of the one number that a text begins with.

    ``1,000`` is 1000, ``42.`` is 42, ``$18`` is 18, ``3.50`` is 7/2, ``1/2`` a half. A dollar sign, and a unit or a full stop
    after the number, change nothing; a text with a second number (``5 - 3``, ``1e1``, ``1,00``) has no value.

    Returns:
        The value; None if the text does not begin with a number, holds another one, or is too long.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.replace("$", "")
    match = _NUMBER.match(text)
    # `isnumeric` and not `isdigit`: one half as a single character (U+00BD) makes another number of `1`.
    if match is None or any(character.isnumeric() for character in text[match.end() :]):
        return None
    sign, number, denominator = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    # Exact: as floats, 1/3 and 0.333333333333333333 are equal.
    return Fraction(sign + number.replace(",", "")) / int(denominator or 1)


class FinalNumber(AnswerReward[Fraction]):
    """1 if the completion ends and the number after its last marker has the value of the reference, else 0.

    Numbers compare by exact value, however they are written: ``$1,000.00`` is ``1000``. A completion without the marker has no
    answer, and one with a second number after the marker has none either. The prompt is not read: it may quote the marker.

    Args:
        marker: text that announces the answer; GSM8K's is ``####``.
    """

    def __init__(self, marker: str = "####") -> None:
        self.marker = marker

    def read(self, text: str, sample: Sample) -> Fraction | None:
        _, found, answer = text.rpartition(self.marker)
        return read_value(answer) if found else None

    def is_right(self, answer: Fraction | None, sample: Sample) -> bool:
        truth = read_value(sample.reference)
        if truth is None:
            raise ValueError(
                f"the reference {sample.reference[:40]!r} of sample {sample.number} is not a number; FinalNumber judges "
                "numbers, use MathAnswer for other answers."
            )
        return answer == truth


class MathAnswer(AnswerReward[str]):
    r"""1 if the completion ends and the expression in its last ``\boxed{}`` equals the reference, else 0.

    Equality is mathematical (``\frac{1}{2}`` is ``0.5``, ``x+1`` is ``1+x``) and judged by math-verify in a process of its own.
    An answer that math-verify cannot read or does not decide within 5 seconds is wrong. Majority votes count equal texts.
    """

    name = "boxedmath"

    def read(self, text: str, sample: Sample) -> str | None:
        answer = _LAST_BOX.read(text)
        return (answer or "").strip() or None  # an empty box holds no answer

    def is_right(self, answer: str | None, sample: Sample) -> bool:
        return answer is not None and equal_answers(sample.reference.strip(), answer)
