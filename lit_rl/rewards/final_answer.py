r"""Rewards for worked solutions: a final number after ``####``, or a final expression in ``\boxed{}``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from lit_rl.options import check_choice
from lit_rl.rewards.base import AnswerReward
from lit_rl.rewards.math_judge import equal_answers
from lit_rl.rewards.notation import bare_formula, join_thousands
from lit_rl.rewards.prefix_match import AnswerFormat
from lit_rl.tasks.numbers import MAX_CHARACTERS
from lit_rl.types import Sample

Fallback = Literal["none", "last_number"]

# [0-9] and not \d, which also matches the digits of other scripts. Commas count in thousands only.
_NUMBER = re.compile(r"\s*([-+]?)\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/([0-9]+))?")
_LEAD = re.compile(r"\s*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?", re.IGNORECASE)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARK = re.compile(r"\\boxed\s*\{|\\[()\[\],$]|[*_`$€£¥₹]")
_POWER_OF_UNIT = re.compile(r"(?<=[A-Za-z])(?:\^\{?[0-9]\}?|[²³])")
_LAST_BOX = AnswerFormat(after="")
_BETWEEN_BOXES = re.compile(r"\}[\s$]*(?:,|;|,?\s*(?:\\text\{)?\s*\b(?:and|or)\b\s*\}?)[\s$]*$")


def read_value(text: str) -> Fraction | None:
    r"""Exact value of the one number that a text holds at its beginning.

    ``1,000`` is 1000, ``42.`` is 42, ``$18`` is 18, ``3.50`` is 7/2, ``1/2`` a half. Currency signs, Markdown, ``\boxed{}`` and
    the words "the answer is" before the number change nothing, nor does a unit (``42 m^2``) or a full stop after it. A text
    with a second number (``5 - 3``, ``1e1``, ``1,00``) has no value.

    Returns:
        The value; None if the text does not begin with a number, holds another one, or is too long.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _plain(text)
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    match = _NUMBER.match(text)
    # `isnumeric` and not `isdigit`: one half as a single character (U+00BD) makes another number of `1`.
    if match is None or any(character.isnumeric() for character in text[match.end() :]):
        return None
    sign, number, denominator = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    # Exact: as floats, 1/3 and 0.333333333333333333 are equal.
    return Fraction(sign + number.replace(",", "")) / int(denominator or 1)


def last_value(text: str) -> Fraction | None:
    """Value of the last word of a text that holds a digit; None if it is not one number, or a sign stands apart from it."""
    words = _plain(text).replace("=", " = ").split()
    place = max((place for place, word in enumerate(words) if re.search("[0-9]", word)), default=None)
    if place is None or (place and words[place - 1] in ("-", "+", "/")):
        return None
    return read_value(words[place].strip("()[]{}\"'~≈<>"))


def _plain(text: str) -> str:
    """Text without marks that change no value; a space in place of each, so that ``5$3`` stays two numbers."""
    text = join_thousands(text).replace("\N{MINUS SIGN}", "-")
    return _POWER_OF_UNIT.sub("", _MARK.sub(" ", _WORDS.sub(r" \1", text)))


class FinalNumber(AnswerReward[Fraction]):
    """1 if the completion ends and the number after its last marker has the value of the reference, else 0.

    Numbers compare by exact value, however they are written: ``$1,000.00`` is ``1000``. A completion without the marker has no
    answer, and one with a second number after the marker has none either. The prompt is not read: it may quote the marker.

    Args:
        marker: text that announces the answer; GSM8K's is ``####``.
        fallback: answer of a completion without the marker: ``none``, or ``last_number``, the last number in it, for models
            that were never taught the marker.
    """

    def __init__(self, marker: str = "####", fallback: Fallback = "none") -> None:
        check_choice("fallback", fallback, Fallback)
        if not marker:
            raise ValueError("FinalNumber: marker is empty; write the text that announces the answer, such as '####'.")
        self.marker, self.fallback = marker, fallback

    def read(self, text: str, sample: Sample) -> Fraction | None:
        _, found, answer = text.rpartition(self.marker)
        if found:
            return read_value(answer)
        return last_value(text) if self.fallback == "last_number" else None

    def reasoning(self, text: str) -> str:
        before, found, _ = text.rpartition(self.marker)
        return before if found else text

    def is_right(self, answer: Fraction | None, sample: Sample) -> bool:
        truth = read_value(sample.reference)
        if truth is None:
            raise ValueError(
                f"the reference {sample.reference[:40]!r} of sample {sample.number} is not a number; FinalNumber judges "
                "numbers, use MathAnswer for other answers."
            )
        return answer == truth

    def example(self, sample: Sample) -> str:
        return f"{self.marker} {sample.reference}"


class MathAnswer(AnswerReward[str]):
    r"""1 if the completion ends and the expression in its last ``\boxed{}`` equals the reference, else 0.

    Equality is mathematical (``\frac{1}{2}`` is ``0.5``, ``x+1`` is ``1+x``), exact except beside decimals, and judged in a
    process of its own (`lit_rl.rewards.math_equality`). An answer that cannot be read, or is not decided within 5 seconds, is
    wrong. If the reference has several values (``1, 2``), the boxes of a list ``\boxed{1} and \boxed{2}`` are one answer.
    Majority votes count equal texts.
    """

    name = "boxedmath"

    def read(self, text: str, sample: Sample) -> str | None:
        answer = _last_boxes(text) if _has_several(sample.reference) else _LAST_BOX.read(text)
        return bare_formula(answer or "") or None  # an empty box holds no answer

    def reasoning(self, text: str) -> str:
        before, found, _ = text.rpartition(r"\boxed{")
        return before if found else text

    def is_right(self, answer: str | None, sample: Sample) -> bool:
        return answer is not None and equal_answers(bare_formula(sample.reference), answer)

    def example(self, sample: Sample) -> str:
        return rf"\boxed{{{sample.reference}}}"


def _has_several(reference: str) -> bool:
    """Whether a reference lists values outside of brackets: ``1, 2``, ``1 and 2``, ``{1, 2}``."""
    # The braces of a set are no brackets here; a number with commas between its thousands is one value.
    flat = re.sub(r"\\[{}]|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])", " ", bare_formula(reference))
    while flat != (flat := re.sub(r"[({\[][^(){}\[\]]*[)}\]]", " ", flat)):
        continue
    return bool(re.search(r",|;|\b(?:and|or)\b", flat))


def _last_boxes(text: str) -> str | None:
    r"""Contents of the last boxes that only a comma, "and" or "or" separates, as a list."""
    found: list[str] = []
    while (answer := _LAST_BOX.read(text)) is not None:
        found.insert(0, answer.strip())
        text = text[: text.rindex(rf"\boxed{{{answer}}}")]
        if not _BETWEEN_BOXES.search(text):
            break
    return ", ".join(found) or None
