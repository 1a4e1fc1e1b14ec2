"""Random arithmetic expressions: the grammar, exact values and the printed text.

Text and value must never disagree: a right operand that does not bind tighter than its operator always gets
parentheses, so that ``10-(2+3)`` is not printed as ``10-2+3``. Reading the text by the ordinary rules (``* / %``
before ``+ -``, left to right, a minus sign in operand position belongs to its digits) gives back the same tree.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import NamedTuple

from lit_rl.tasks.numbers import MAX_CHARACTERS, DigitOrder, write_number

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}
_ATOM = 3  # a literal or a function call: binds tighter than every infix operator

_UNARY: dict[str, Callable[[Fraction], Fraction]] = {
    "next": lambda value: value + 1,
    "prev": lambda value: value - 1,
    "abs": abs,
}
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": python_operator.add,
    "-": python_operator.sub,
    "*": python_operator.mul,
    "/": python_operator.truediv,
    "%": python_operator.mod,
    "max": max,
    "min": min,
}
OPERATORS = (*_BINARY, *_UNARY)
_DIVISOR_REDRAWS = 10
"""Further draws of a divisor that is zero, after which it becomes a literal from 1 up."""


@dataclass(frozen=True)
class Grammar:
    """Distribution of arithmetic expressions and of the spaces and redundant parentheses in their text."""

    operators: Sequence[str] = ("+", "-")
    """Operators, each equally likely: any of + - * / % max min next prev abs; % has the sign of its divisor."""
    max_digits: int = 2
    """Digits of the longest literal; the number of digits is uniform from 1 to ``max_digits``."""
    max_depth: int = 1
    """Operators on the longest path from the root, 1 for a single operator; deeper operands are literals half of the time."""
    signed: bool = True
    """Whether literals are negative with probability 1/2; otherwise all are 0 or more."""
    spaces: float = 0.0
    """Probability of a space at each place between two tokens; 0 prints none, 1 prints all."""
    parentheses: float = 0.0
    """Probability of a redundant pair of parentheses around each subexpression; 0 prints the needed pairs only."""

    def __post_init__(self) -> None:
        # YAML gives a list, which would leave the grammar unhashable.
        object.__setattr__(self, "operators", tuple(self.operators))
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown or not self.operators:
            raise ValueError(f"Grammar operators={list(self.operators)}: write one or more of {' '.join(OPERATORS)}.")
        for name in ("max_digits", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"Grammar {name}={getattr(self, name)}: write 1 or more.")
        for name in ("spaces", "parentheses"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Grammar {name}={getattr(self, name)}: write a probability from 0 to 1.")
        # Each literal and each sum adds its digits to the numerator and to the denominator of the value.
        if 2 * (self.max_digits + 1) * 2**self.max_depth > MAX_CHARACTERS - 2:
            raise ValueError(
                f"Grammar max_depth={self.max_depth} with max_digits={self.max_digits}: write smaller values, "
                f"results may have more than {MAX_CHARACTERS} characters."
            )


class Node(NamedTuple):
    """Expression with its value; a literal has no children and an empty operator."""

    operator: str
    children: tuple[Node, ...]
    value: Fraction


def generate(grammar: Grammar, rng: Random) -> Node:
    """Draw an expression with an operator at its root."""
    return _operation(grammar, rng, grammar.max_depth)


def show(node: Node, grammar: Grammar, order: DigitOrder = "big", rng: Random | None = None) -> str:
    """Print an expression.

    Args:
        node: the expression.
        grammar: has the probabilities of spaces and of redundant parentheses.
        order: order of the digits within each number.
        rng: draws spaces and redundant parentheses; None prints none.
    """
    if rng is None:
        return "".join(_tokens(node, order))
    tokens = _tokens(node, order, grammar.parentheses, rng)
    if grammar.spaces == 0:
        return "".join(tokens)
    # A literal is one token with its sign, so no space can fall inside it.
    return tokens[0] + "".join(f" {token}" if rng.random() < grammar.spaces else token for token in tokens[1:])


def canonical(node: Node) -> str:
    """Print an expression without spaces or redundant parentheses: equal problems have equal texts."""
    return "".join(_tokens(node, "big"))


def _operation(grammar: Grammar, rng: Random, depth: int) -> Node:
    name = rng.choice(grammar.operators)
    first = _operand(grammar, rng, depth - 1)
    if name in _UNARY:
        return Node(name, (first,), _UNARY[name](first.value))
    draw = _divisor if name in ("/", "%") else _operand
    # A zero divisor is drawn again and not its whole expression, so that `/` stays as likely as any operator.
    second = draw(grammar, rng, depth - 1)
    return Node(name, (first, second), _BINARY[name](first.value, second.value))


def _operand(grammar: Grammar, rng: Random, depth: int) -> Node:
    if depth == 0 or rng.random() < 0.5:
        return _literal(grammar, rng)
    return _operation(grammar, rng, depth)


def _divisor(grammar: Grammar, rng: Random, depth: int) -> Node:
    """Draw an operand that is not zero."""
    for _ in range(1 + _DIVISOR_REDRAWS):
        node = _operand(grammar, rng, depth)
        if node.value != 0:
            return node
    return _literal(grammar, rng, lowest=1)


def _literal(grammar: Grammar, rng: Random, lowest: int = 0) -> Node:
    digits = rng.randint(1, grammar.max_digits)
    # Among one-digit numbers 0 counts too; longer ones begin with 1 to 9.
    value = rng.randint(10 ** (digits - 1) if digits > 1 else lowest, 10**digits - 1)
    if grammar.signed and rng.random() < 0.5:
        value = -value
    return Node("", (), Fraction(value))


def _tokens(node: Node, order: DigitOrder, parentheses: float = 0.0, rng: Random | None = None) -> list[str]:
    precedence = PRECEDENCE.get(node.operator)
    if not node.children:
        tokens = [write_number(node.value, order)]
    elif precedence is None:
        tokens = [node.operator, "("]
        for child in node.children:
            tokens += [*_tokens(child, order, parentheses, rng), ","]
        tokens[-1] = ")"  # in place of the last comma
    else:
        left, right = (_tokens(child, order, parentheses, rng) for child in node.children)
        first, second = node.children
        # A left operand of equal precedence needs no pair: text is read from left to right.
        if PRECEDENCE.get(first.operator, _ATOM) < precedence:
            left = _enclosed(left)
        # Equal precedence too: without the pair, 10-(2+3) would read as (10-2)+3.
        if PRECEDENCE.get(second.operator, _ATOM) <= precedence:
            right = _enclosed(right)
        tokens = [*left, node.operator, *right]
    if rng is not None and rng.random() < parentheses:
        return _enclosed(tokens)
    return tokens


def _enclosed(tokens: list[str]) -> list[str]:
    return ["(", *tokens, ")"]
