r"""Rewards for worked solutions: a final number behind ``####``, or a final expression in ``\boxed{}``."""

from __future__ import annotations

import re
from collections.abc import Hashable
from fractions import Fraction

from lit_rl.rewards.answers import ArithmeticAnswer
from lit_rl.rewards.math_judge import equal_answers
from lit_rl.rewards.prefix_match import AnswerFormat
from lit_rl.tasks.numbers import MAX_CHARACTERS
from lit_rl.types import Sample

# [0-9] and not \d, which also matches the digits of other scripts. Commas count in thousands only.
_NUMBER = re.compile(r"\s*([-+]?)\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/([0-9]+))?")
_LAST_BOX = AnswerFormat(after="")


def read_value(text: str) -> Fraction | None:
    """The one number that a text begins with, exactly.

    ``1,000`` is 1000, ``42.`` is 42, ``$18`` is 18, ``3.50`` is 7/2, ``1/2`` a half. A dollar sign, and a unit or a full stop
    behind the number, change nothing; a text with a second number (``5 - 3``, ``1e1``, ``1,00``) has no value.

    Returns:
        The value, or None where the text begins with no number, holds another one, or is too long.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.replace("$", "")
    match = _NUMBER.match(text)
    if match is None or any(character.isnumeric() for character in text[match.end() :]):
        return None
    sign, number, denominator = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    return Fraction(sign + number.replace(",", "")) / int(denominator or 1)


class FinalNumber(ArithmeticAnswer):
    """1 where the completion ends and the number behind its last marker has the value of the reference, else 0.

    Numbers compare by exact value, however they are written: ``$1,000.00`` is ``1000``. A completion without the marker has no
    answer, and one that goes on to another number behind it has none either. The prompt is not looked at: it may quote the
    marker.

    Args:
        marker: what announces the answer; GSM8K's is ``####``.
    """

    def __init__(self, marker: str = "####") -> None:
        super().__init__(marker)

    def read(self, text: str, sample: Sample) -> Fraction | None:
        """The answer in one finished completion."""
        _, found, answer = text.rpartition(self.marker)
        return read_value(answer) if found else None

    def is_right(self, answer: Hashable | None, sample: Sample) -> bool:
        """Whether an answer has the value of the sample's reference."""
        truth = read_value(sample.reference)
        if truth is None:
            raise ValueError(
                f"the reference {sample.reference[:40]!r} of sample {sample.number} is no number; FinalNumber judges numbers, "
                "use MathAnswer for other answers."
            )
        return answer == truth


class MathAnswer(ArithmeticAnswer):
    r"""1 where the completion ends and the expression in its last ``\boxed{}`` equals the reference, else 0.

    Equality is mathematical (``\frac{1}{2}`` is ``0.5``, ``x+1`` is ``1+x``) and judged by math-verify in a process of its own.
    What it cannot read or does not decide within 5 seconds is wrong. Majority votes count equal texts.
    """

    name = "boxedmath"

    def __init__(self) -> None:
        super().__init__(r"\boxed{")

    def read(self, text: str, sample: Sample) -> str | None:
        """The text in the box, None without a box or with an empty one."""
        answer = _LAST_BOX.read(text)
        return (answer or "").strip() or None

    def is_right(self, answer: Hashable | None, sample: Sample) -> bool:
        """Whether an answer equals the sample's reference."""
        return isinstance(answer, str) and equal_answers(sample.reference.strip(), answer)
