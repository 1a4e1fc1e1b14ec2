"""Exact numbers as text: the one definition of which texts are numbers.

A number has one text: ``-12``, ``1/3``. In little order the digits of each integer run from the lowest up and the sign
stays in front: ``-21`` is minus twelve, ``1/21`` a twelfth. Reading is strict, because a reward that accepts ``3.0`` or
``+10`` teaches a model to write them.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

DigitOrder = Literal["big", "little"]

MAX_CHARACTERS = 1000
"""Characters of the longest text that is read: ``int`` raises on some thousands of digits, and a model may write them."""

# [0-9] and not \d, which also matches the digits of other scripts.
_NUMBER = re.compile(r"(-?)([0-9]+)(?:/([0-9]+))?")


def write_number(value: Fraction | int, order: DigitOrder = "big") -> str:
    """Write a number in lowest terms, without leading zeros."""
    text = _write_integer(value.numerator, order)
    if value.denominator == 1:
        return text
    return f"{text}/{_write_integer(value.denominator, order)}"


def read_number(text: str, order: DigitOrder = "big") -> Fraction | None:
    """Read the text of a number, or of a fraction that is not in lowest terms.

    Returns:
        The value; None for any other text.
    """
    # `fullmatch` and not `$`, which also matches before a line break at the end.
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    sign, numerator, denominator = match.groups()
    top = _read_digits(numerator, order)
    bottom = 1 if denominator is None else _read_digits(denominator, order)
    # Refused: leading zeros, a denominator of 0, and -0, since a number has one text.
    if top is None or not bottom or (sign and top == 0):
        return None
    return Fraction(-top if sign else top, bottom)


def _write_integer(value: int, order: DigitOrder) -> str:
    if order == "big":
        return str(value)
    return ("-" if value < 0 else "") + str(abs(value))[::-1]


def _read_digits(digits: str, order: DigitOrder) -> int | None:
    """Value of digits; None for leading zeros."""
    if order == "little":
        digits = digits[::-1]
    if digits[0] == "0" and len(digits) > 1:
        return None
    return int(digits)
