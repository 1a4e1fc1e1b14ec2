"""Changed questions: one number of a word problem is changed, and the right answer is computed if the solution tells how.

A worked solution such as GSM8K's writes its calculations down: ``48/2 = 24`` and ``48+24 = 72``. If every number in them is
a number of the question, a result before it or a common constant, they are done again with the changed number. In every other
case the right answer is not known.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from random import Random
from typing import NamedTuple

from lit_rl.tasks.changed_stories import change_number

_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_IN_QUESTION = re.compile(rf"(?<![\w.,/:-])(?:{_NUMBER})(?![\w/:-]|[.,][0-9])")
_CALCULATION = re.compile(rf"((?:{_NUMBER}|[-+*/()$%\s])+)=\s*[-$\s]*({_NUMBER})(?![%/0-9])")
_TOKEN = re.compile(rf"({_NUMBER})(%?)|([-+*/()])")
_NUMBER_WORDS = {
    2: "two twice double half pair both other",
    3: "three thrice triple third",
    4: "four quarter fourth",
    5: "five fifth",
    6: "six",
    7: "seven week daily",
    8: "eight",
    9: "nine",
    10: "ten",
    12: "twelve dozen year month",
}
"""Words that stand for a number in a question, so that the number in a solution may come from the word."""
CONSTANTS = frozenset(map(Fraction, (1, 2, 3, 4, 5, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000))) | {Fraction(1, 2)}
"""Numbers that a solution may use although no digit of the question says them."""
COMMON = frozenset(number for number in CONSTANTS if number <= 12 or number in (60, 100))
"""Constants so common that a result of their size cannot be told from them."""
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class Literal(NamedTuple):
    """A number in a calculation."""

    number: Fraction
    factor: Fraction
    """1/100 before a percent sign, else 1."""


Part = str | Literal
"""An operator, a parenthesis or a number."""


class Changed(NamedTuple):
    """A changed question."""

    question: str
    answer: Fraction | None
    """Its right answer; None if it is not known."""


class Calculation(NamedTuple):
    """A calculation of a solution."""

    parts: list[Part]
    result: Fraction


def change_question(question: str, solution: str, reference: str, rng: Random) -> Changed | None:
    """Change one number of a question, if possible one for which the right answer can be computed.

    Args:
        question: the bare question.
        solution: its worked solution; may be empty.
        reference: its answer, a number.
        rng: chooses number and change.

    Returns:
        The changed question; None if the question has no number of 2 or more.
    """
    if (story := change_number(question, rng)) is not None:
        return Changed(story[0], Fraction(story[1]))
    places = [match for match in _IN_QUESTION.finditer(question) if _changeable(match[0])]
    rng.shuffle(places)
    calculations = _calculations(solution, reference)
    for match in places if calculations else ():
        old = int(_value(match[0]))
        for new in _other_numbers(old, question, rng):
            answer = _recalculated(calculations, question, Fraction(old), Fraction(new))
            if answer is not None:
                return Changed(_replaced(question, match, new), answer)
    if not places:
        return None
    return Changed(_replaced(question, places[0], _other_numbers(int(_value(places[0][0])), question, rng)[0]), None)


def _changeable(text: str) -> bool:
    value = _value(text)
    return value.denominator == 1 and value >= 2 and "." not in text


def _other_numbers(old: int, question: str, rng: Random) -> list[int]:
    """Numbers near an old one that the question does not hold, in random order."""
    known = {_value(match[0]) for match in _IN_QUESTION.finditer(question)}
    near = [*range(max(2, old // 2), old), *range(old + 1, 2 * old + 9)]
    some = rng.sample(near, min(len(near), 40))
    return [number for number in some if number not in known] or [old + max(map(int, known)) + 1]


def _replaced(question: str, match: re.Match[str], new: int) -> str:
    return f"{question[: match.start()]}{new}{question[match.end() :]}"


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _calculations(solution: str, reference: str) -> list[Calculation]:
    """Calculations of a solution, if each is right and the last result is the reference; else none."""
    # GSM8K's marks repeat the calculation before them.
    found = [
        Calculation(list(_parts(expression)), _value(result))
        for expression, result in _CALCULATION.findall(re.sub(r"<<[^<>]*>>", "", solution))
        if re.search(r"[0-9]", expression)
    ]
    answer = reference.strip().lstrip("$")
    if not found or not re.fullmatch(_NUMBER, answer) or found[-1].result != _value(answer):
        return []
    return found if all(_result(parts, lambda number: number) == result for parts, result in found) else []


def _parts(expression: str) -> Iterator[Part]:
    for number, percent, sign in _TOKEN.findall(expression):
        yield sign or Literal(_value(number), Fraction(1, 100) if percent else Fraction(1))


def _result(parts: Sequence[Part], change: Callable[[Fraction], Fraction]) -> Fraction | None:
    """Result of a calculation whose numbers are changed by a function."""
    return evaluate([part if isinstance(part, str) else change(part.number) * part.factor for part in parts])


def _recalculated(calculations: Sequence[Calculation], question: str, old: Fraction, new: Fraction) -> Fraction | None:
    """Last result with another number in place of a number of the question; None if it is not sure, or would be no answer.

    Whole results stay whole, positive ones positive; the last one changes.
    """
    asked = [_value(match[0]) for match in _IN_QUESTION.finditer(question)]
    # A word of the question may stand for the same number, and a constant for anything.
    if asked.count(old) != 1 or old in CONSTANTS or _said_in_words(question, old):
        return None
    results: dict[Fraction, Fraction] = {}  # by the result that the solution has
    used: set[Fraction] = set()
    for place, (parts, result) in enumerate(calculations, start=1):
        numbers = {part.number for part in parts if not isinstance(part, str)}
        if old in results or not numbers <= {*results, *asked, *CONSTANTS}:
            return None
        used |= numbers
        value = _result(parts, lambda number: new if number == old else results.get(number, number))
        if value is None or (result.denominator == 1 and value.denominator != 1) or (result > 0 and value <= 0):
            return None
        # Two results, or a result and a given number, that were equal are so no longer: which one is meant after this?
        if results.setdefault(result, value) != value:
            return None
        if place < len(calculations) and result in {*asked, *COMMON} and value != result:
            return None
    return value if old in used and value != calculations[-1].result else None


def _said_in_words(question: str, number: Fraction) -> bool:
    words = _NUMBER_WORDS.get(int(number), "").split()
    return any(re.search(rf"\b{word}", question, re.IGNORECASE) for word in words)


def evaluate(parts: Sequence[Fraction | str]) -> Fraction | None:
    """Evaluate an expression of numbers, ``+ - * /`` and parentheses by the usual precedence; None if it is malformed."""
    rest = list(parts)
    try:
        value = _sum(rest)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if rest else value


def _sum(rest: list[Fraction | str]) -> Fraction:
    return _chain(rest, ("+", "-"), lambda: _chain(rest, ("*", "/"), lambda: _operand(rest)))


def _chain(rest: list[Fraction | str], operators: tuple[str, ...], operand: Callable[[], Fraction]) -> Fraction:
    """Operands between operators of one precedence, from the left; what is read is taken out of ``rest``."""
    value = operand()
    while rest and rest[0] in operators:
        apply = APPLY[str(rest.pop(0))]
        value = apply(value, operand())
    return value


def _operand(rest: list[Fraction | str]) -> Fraction:
    part = rest.pop(0)
    if part == "-":
        return -_operand(rest)
    if part == "(":
        value = _sum(rest)
        if rest.pop(0) != ")":
            raise ValueError("a parenthesis is not closed")
        return value
    if isinstance(part, str):
        raise ValueError(f"{part!r} where a number is due")
    return part
