"""A second reading of printed expressions, written from the rules alone and without the code under test.

Strict: at most one space between tokens, none inside a number, no leading zeros, no ``-0``, nothing left over.
"""

from __future__ import annotations

import re
from fractions import Fraction

Tree = Fraction | tuple  # a literal, or (operator, operand) or (operator, operand, operand)

_OPERAND_START = re.compile(r" ?(?:(-?[0-9]+)|([a-z]+) ?\(|\()")
_AFTER_OPERAND = re.compile(r" ?([-+*/%,)])")
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}
_ARGUMENTS = {"max": 2, "min": 2, "next": 1, "prev": 1, "abs": 1}


def parse(text: str, order: str = "big") -> Tree:
    """Read an expression as nested tuples; ``ValueError`` where the text is not one."""
    tree, end = _expression(text, 0, 1, order)
    if end != len(text) or text != text.strip():
        raise ValueError(f"left over in {text!r} at {end}")
    return tree


def value(tree: Tree) -> Fraction:
    """Evaluate a tree."""
    if isinstance(tree, Fraction):
        return tree
    name, first, *rest = tree[0], *map(value, tree[1:])
    if not rest:
        return {"next": first + 1, "prev": first - 1, "abs": -first if first < 0 else first}[name]
    second = rest[0]
    if name in ("/", "%"):
        quotient = first / second
        # The floor of the quotient, so that the remainder has the sign of the divisor.
        return quotient if name == "/" else first - second * (quotient.numerator // quotient.denominator)
    if name in ("max", "min"):
        return first if (first > second) == (name == "max") else second
    if name == "*":
        return first * second
    return first + (second if name == "+" else -second)


def statements(work: str) -> list[str]:
    """Split a scratchpad at the commas outside parentheses."""
    parts, depth = [""], 0
    for character in work:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def is_true(statement: str, order: str = "big") -> bool:
    """Whether a statement is one equation between equal values."""
    left, right = statement.split("=")
    return value(parse(left, order)) == value(parse(right, order))


def _expression(text: str, at: int, least: int, order: str) -> tuple[Tree, int]:
    left, at = _operand(text, at, order)
    while (match := _AFTER_OPERAND.match(text, at)) and _BINDING.get(match[1], 0) >= least:
        right, at = _expression(text, match.end(), _BINDING[match[1]] + 1, order)
        left = (match[1], left, right)
    return left, at


def _operand(text: str, at: int, order: str) -> tuple[Tree, int]:
    match = _OPERAND_START.match(text, at)
    if match is None:
        raise ValueError(f"no operand in {text!r} at {at}")
    if match[1]:
        return _literal(match[1], order), match.end()
    if match[2] is None:
        inner, at = _expression(text, match.end(), 1, order)
        return inner, _expect(text, at, ")")
    arguments, at = [], match.end()
    for closing in ",)"[-_ARGUMENTS[match[2]] :]:
        argument, at = _expression(text, at, 1, order)
        at = _expect(text, at, closing)
        arguments.append(argument)
    return (match[2], *arguments), at


def _expect(text: str, at: int, character: str) -> int:
    match = _AFTER_OPERAND.match(text, at)
    if match is None or match[1] != character:
        raise ValueError(f"no {character!r} in {text!r} at {at}")
    return match.end()


def _literal(text: str, order: str) -> Fraction:
    digits = text.removeprefix("-")
    if order == "little":
        digits = digits[::-1]
    if digits != str(int(digits)) or text in ("-0",):
        raise ValueError(f"not a plain number: {text!r}")
    return Fraction(-int(digits) if text[0] == "-" else int(digits))
