"""Modular arithmetic in reverse Polish notation: random expressions, their derivations, and the texts of both.

    prompt  <boe> 2 3 + 4 +          completion  = 5 4 + = 9          value 9

An expression is a list of words: operands from 0 to modulus - 1, and operators after their two operands. A triple
[operand operand operator] is ready: its value can replace it. Two ready triples never overlap, because the second word of a
triple is an operand and its third is an operator.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from random import Random

BEGIN, END = "<boe>", "<eoe>"
EQUALS = "="
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": python_operator.add,
    "-": python_operator.sub,
    "*": python_operator.mul,
}


@dataclass(frozen=True)
class RPNGrammar:
    """Distribution of modular expressions."""

    modulus: int = 13
    """Modulus of all values, prime or not; operands are uniform from 0 to ``modulus - 1``."""
    operators: Sequence[str] = ("+",)
    """Operators, each equally likely: any of + - *."""
    min_operations: int = 1
    """Operators in the shortest expressions; the number of operators is uniform up to ``max_operations``."""
    max_operations: int = 3
    """Operators in the longest expressions."""

    def __post_init__(self) -> None:
        # YAML gives a list, which would leave the grammar unhashable.
        object.__setattr__(self, "operators", tuple(self.operators))
        if self.modulus < 2:
            raise ValueError(f"RPNGrammar modulus={self.modulus}: write 2 or more.")
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"RPNGrammar operators={list(self.operators)}: write one or more of {' '.join(OPERATORS)}.")
        if self.min_operations < 1:
            raise ValueError(f"RPNGrammar min_operations={self.min_operations}: write 1 or more.")
        if self.max_operations < self.min_operations:
            raise ValueError(
                f"RPNGrammar max_operations={self.max_operations}: write min_operations={self.min_operations} or more."
            )


def generate(grammar: RPNGrammar, rng: Random) -> list[str]:
    """Draw an expression: first the number of operators, then one of all trees with that many, each equally likely."""
    # The number of operators first: among all trees up to a size nearly all have the largest.
    shape = _shape(rng.randint(grammar.min_operations, grammar.max_operations), rng)
    return [str(rng.randrange(grammar.modulus)) if leaf else rng.choice(grammar.operators) for leaf in shape]


def reduce_once(expression: Sequence[str], modulus: int) -> list[str]:
    """Replace every ready triple of the expression by its value; triples that become ready thereby stay."""
    return [value for _, value in _pieces(expression, modulus)]


def derivation(expression: list[str], modulus: int) -> list[list[str]]:
    """The expression and every `reduce_once` of it, until no triple is ready: down to a single value."""
    expressions = [expression]
    # Ends, since every change takes at least two words away.
    while (reduced := reduce_once(expressions[-1], modulus)) != expressions[-1]:
        expressions.append(reduced)
    return expressions


def is_step(before: list[str], after: list[str], modulus: int) -> bool:
    """Whether one expression comes from another by replacing at least one of its ready triples, each by its own value."""
    # Numbers of words of `after` that the pieces so far may stand for. There are several if a triple begins with its own
    # value, as in ``2 0 +``: only later words tell whether it was replaced.
    ends = {0}
    for piece, value in _pieces(before, modulus):
        ends = {end + len(words) for words in (piece, [value]) for end in ends if after[end : end + len(words)] == words}
    # An expression that is written again unchanged has the same length, and is no step.
    return len(after) < len(before) and len(after) in ends


def write_prompt(expression: Sequence[str]) -> str:
    """Text that asks for an expression's value; it ends before the first ``=``."""
    return " ".join([BEGIN, *expression])


def read_prompt(prompt: str) -> list[str]:
    """Expression of a prompt."""
    return prompt.removeprefix(f"{BEGIN} ").split(" ")


def write_steps(steps: Sequence[Sequence[str]]) -> str:
    """Text of the expressions that a prompt's expression reduces to, ``=`` before each."""
    return " ".join(word for step in steps for word in (EQUALS, *step))


def read_steps(text: str) -> list[list[str]]:
    """Expressions of a completion, whether valid or not; empty if it does not begin with ``=``."""
    # By one space and not by white space: a doubled space leaves an empty word, which no expression has.
    words = text.split(" ")
    if words[0] != EQUALS:
        return []
    places = [place for place, word in enumerate(words) if word == EQUALS]
    return [words[place + 1 : end] for place, end in pairwise([*places, len(words)])]


@cache
def operands(modulus: int) -> frozenset[str]:
    """Texts of all operands; an operand has one text."""
    return frozenset(map(str, range(modulus)))


def vocabulary(modulus: int) -> list[str]:
    """All words of prompts and completions, without the control tokens."""
    return [*map(str, range(modulus)), *OPERATORS, EQUALS]


def _shape(operations: int, rng: Random) -> list[bool]:
    """Draw a binary tree with this many operators, each tree equally likely; in postorder, True for an operand.

    By the cycle lemma (Dvoretzky and Motzkin 1947) exactly one rotation of any order of k + 1 operands (+1) and k operators
    (-1) has only positive prefix sums, and so is an expression: the rotation that begins after the last lowest sum.
    """
    leaves = [True] * (operations + 1) + [False] * operations
    rng.shuffle(leaves)
    sums = list(accumulate(1 if leaf else -1 for leaf in leaves))
    # Searched from the right: after an earlier lowest sum the prefix sums would come back to 0.
    start = len(sums) - sums[::-1].index(min(sums))
    return leaves[start:] + leaves[:start]


def _pieces(expression: Sequence[str], modulus: int) -> Iterator[tuple[list[str], str]]:
    """Cut an expression into ready triples, each with its value, and single words, each with itself."""
    known = operands(modulus)
    place = 0
    while place < len(expression):
        words = list(expression[place : place + 3])
        # Words may be a policy's. `known` has texts, so `07` is no operand, and `int` cannot fail below.
        if len(words) == 3 and words[0] in known and words[1] in known and words[2] in OPERATORS:
            first, second = map(int, words[:2])
            yield words, str(OPERATORS[words[2]](first, second) % modulus)
        else:
            words = words[:1]
            yield words, words[0]
        place += len(words)
