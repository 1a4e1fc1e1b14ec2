"""Modular arithmetic in reverse Polish notation: random expressions, their derivations and how both are written.

    prompt  <boe> 2 3 + 4 +          completion  = 5 4 + = 9          value 9

An expression is a list of words: operands from 0 to modulus - 1 and operators behind their two operands. A triple
[operand operand operator] is ready: it can be replaced by its value. Two ready triples never overlap, for the second word of
a triple is an operand and its third is none.
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
    """Which expressions are drawn."""

    modulus: int = 13
    """Values are taken modulo this, prime or not; operands are uniform from 0 to one less."""
    operators: Sequence[str] = ("+",)
    """Drawn with equal probability, out of + - *."""
    min_operations: int = 1
    """Operators in the shortest expressions; the number of operators is uniform from this to the next."""
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
    """Draw an expression: the number of operators uniform, then uniform over all trees with that many."""
    shape = _shape(rng.randint(grammar.min_operations, grammar.max_operations), rng)
    return [str(rng.randrange(grammar.modulus)) if leaf else rng.choice(grammar.operators) for leaf in shape]


def reduce_once(expression: Sequence[str], modulus: int) -> list[str]:
    """Replace every ready triple of the expression by its value; those that only become ready thereby stay."""
    return [value for _, value in _pieces(expression, modulus)]


def derivation(expression: list[str], modulus: int) -> list[list[str]]:
    """The expression, what `reduce_once` makes of it, and so on until nothing is ready: down to a single value."""
    expressions = [expression]
    while (reduced := reduce_once(expressions[-1], modulus)) != expressions[-1]:
        expressions.append(reduced)
    return expressions


def is_step(before: list[str], after: list[str], modulus: int) -> bool:
    """Whether one expression comes from another by replacing at least one of its ready triples, each by its own value."""
    # How many words of `after` the pieces so far may account for: where a triple begins with its own value, as in
    # ``2 0 +``, only what follows can tell whether it was replaced.
    ends = {0}
    for piece, value in _pieces(before, modulus):
        ends = {end + len(words) for words in (piece, [value]) for end in ends if after[end : end + len(words)] == words}
    return len(after) < len(before) and len(after) in ends


def write_prompt(expression: Sequence[str]) -> str:
    """The text that asks for an expression's value; it ends before the first ``=``."""
    return " ".join([BEGIN, *expression])


def read_prompt(prompt: str) -> list[str]:
    """The expression in a prompt."""
    return prompt.removeprefix(f"{BEGIN} ").split(" ")


def write_steps(steps: Sequence[Sequence[str]]) -> str:
    """The text of expressions that follow from a prompt's, ``=`` before each."""
    return " ".join(word for step in steps for word in (EQUALS, *step))


def read_steps(text: str) -> list[list[str]]:
    """The expressions in a completion, as they are written; none where it does not begin with ``=``."""
    words = text.split(" ")
    if words[0] != EQUALS:
        return []
    places = [place for place, word in enumerate(words) if word == EQUALS]
    return [words[place + 1 : end] for place, end in pairwise([*places, len(words)])]


@cache
def operands(modulus: int) -> frozenset[str]:
    """Every operand in the one way it is written."""
    return frozenset(map(str, range(modulus)))


def vocabulary(modulus: int) -> list[str]:
    """Every word of prompts and completions but the control tokens."""
    return [*map(str, range(modulus)), *OPERATORS, EQUALS]


def _shape(operations: int, rng: Random) -> list[bool]:
    """A tree in postorder, uniform over all binary trees with this many operators: True for an operand, else an operator.

    By the cycle lemma (Dvoretzky and Motzkin 1947), of the rotations of any order of k + 1 operands (+1) and k operators (-1)
    exactly one has only positive prefix sums, which makes it an expression: the one that begins behind the last lowest sum.
    """
    leaves = [True] * (operations + 1) + [False] * operations
    rng.shuffle(leaves)
    sums = list(accumulate(1 if leaf else -1 for leaf in leaves))
    start = len(sums) - sums[::-1].index(min(sums))
    return leaves[start:] + leaves[:start]


def _pieces(expression: Sequence[str], modulus: int) -> Iterator[tuple[list[str], str]]:
    """The expression cut into ready triples, each with its value, and single words, each with itself."""
    known = operands(modulus)
    place = 0
    while place < len(expression):
        words = list(expression[place : place + 3])
        if len(words) == 3 and words[0] in known and words[1] in known and words[2] in OPERATORS:
            first, second = map(int, words[:2])
            yield words, str(OPERATORS[words[2]](first, second) % modulus)
        else:
            words = words[:1]
            yield words, words[0]
        place += len(words)
