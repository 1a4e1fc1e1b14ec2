"""Equality of two mathematical answers in LaTeX: read by math-verify, compared exactly by sympy.

Numbers are equal if their difference is 0, expressions in variables if sympy proves it. Only a decimal such as ``0.333333`` has
a tolerance, which is relative (`TOLERANCE`); an integer equals only itself. math-verify's own comparison rounds both sides to
absolute places, so that it takes 1/2^2012 for 1/2^2013, and reads ``1 = 2`` as 2.

The file is also the program of the judging process (`lit_rl.rewards.math_judge`), and imports nothing heavy of lit_rl.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterable
from typing import Any

import math_verify
from latex2sympy2_extended import is_expr_of_only_symbols
from math_verify.grader import sympy_compare_symbols
from sympy import (
    And,
    Expr,
    FiniteSet,
    Float,
    I,
    Integer,
    Interval,
    MatrixBase,
    Rational,
    Set,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    expand_func,
    simplify,
)
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef
from sympy.core.relational import Eq, Relational

TOLERANCE = Rational(1, 10**6)
"""Relative error up to which a decimal equals a number that is not an integer: six digits of 1/3 are enough."""
DIGITS = 5000
"""Digits that two real numbers without decimals must share; fewer are computed if they differ earlier."""
LIMIT_BYTES = 4 * 2**30
"""Memory limit of the judging process."""
# LaTeX alone: math-verify gives other expressions to sympy's parser, which evaluates them as Python.
LATEX = [math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]


def equal_texts(reference: str, answer: str) -> bool:
    """Whether two answers in LaTeX are equal.

    Raises:
        Exception: of many kinds, if math-verify or sympy fails on the texts.
    """
    golds, answers = read(reference), read(answer)
    return any(equal(gold, each) for gold in golds for each in answers)


def read(text: str) -> list[Any]:
    """Readings of an answer in LaTeX: sympy objects, or the text itself if it cannot be parsed."""
    # The first match is the box; other modes go on to the first fraction of a text that cannot be parsed as a whole.
    return math_verify.parse(rf"\boxed{{{text}}}", LATEX, extraction_mode="first_match", parsing_timeout=None)


def equal(gold: Any, answer: Any) -> bool:
    """Whether an answer equals the gold one; numbers, expressions, equations, inequalities, lists, sets and matrices."""
    if isinstance(gold, str) or isinstance(answer, str):
        return isinstance(gold, str) and isinstance(answer, str) and gold == answer
    if isinstance(gold, MatrixBase) or isinstance(answer, MatrixBase):
        return getattr(gold, "shape", None) == getattr(answer, "shape", 0) and _equal_rows(list(gold), list(answer))
    if len(_sides(gold)) > 1 or len(_sides(answer)) > 1:
        return _equal_equations(_sides(gold), _sides(answer))
    if any(isinstance(each, Set | Tuple | Relational | And) for each in (gold, answer)):
        return _equal_sets(gold, answer)
    return _equal_expressions(gold, answer)


# --- equations ----------------------------------------------------------------------------------------------------------


def _sides(value: Any) -> list[Any]:
    """Sides of an equation, or of a chain such as a = b = 5; the value alone if it is not an equation."""
    links = _parts(value)
    if not links or not all(isinstance(link, Eq) for link in links):
        return [value]
    return [links[0].lhs, *(link.rhs for link in links)]


def _parts(value: Any) -> list[Any]:
    """Relations of a chain such as 0 < x < 1, in their order."""
    if isinstance(value, Relational):
        return [value]
    return list(getattr(value, "_unsorted_args", value.args)) if isinstance(value, And) else []


def _equal_equations(gold: list[Any], answer: list[Any]) -> bool:
    if len(gold) > 1 and len(answer) > 1:
        if equal(gold[0], answer[0]) and equal(gold[-1], answer[-1]):
            return True
        return _factor(gold[0] - gold[-1], answer[0] - answer[-1]) is not None
    # A name in front of one of them: `x = 5` answers 5, and 5 answers `x = 5`, but not `x^2 + 1 = 5`.
    named = len(answer) > 1 or is_expr_of_only_symbols(gold[0])
    return named and _is_consistent(gold) and _is_consistent(answer) and equal(gold[-1], answer[-1])


def _is_consistent(sides: list[Any]) -> bool:
    """Whether no side contradicts the last: `1 = 2` is not a way of writing 2."""
    *others, last = sides
    return all(side.free_symbols or side.atoms(AppliedUndef) or equal(side, last) for side in others)


def _factor(gold: Expr, answer: Expr) -> Expr | None:
    """Number that one expression in variables is a multiple of the other by; None without one."""
    factor = simplify(_exact(gold) / _exact(answer)) if gold.free_symbols and answer.free_symbols else Integer(0)
    return factor if factor.is_number and factor.is_nonzero else None


# --- lists, sets, inequalities --------------------------------------------------------------------------------------------


def _equal_sets(gold: Any, answer: Any) -> bool:
    relations = _parts(gold), _parts(answer)
    if all(relations) and len(gold.free_symbols | answer.free_symbols) > 1:
        return _matched(*relations, _equal_inequalities)
    gold, answer = (_as_set(each) if parts else each for each, parts in zip((gold, answer), relations, strict=True))
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        open_alike = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
        return bool(open_alike) and _equal_rows([gold.start, gold.end], [answer.start, answer.end])
    ours, theirs = _items(gold), _items(answer)
    if ours is None or theirs is None:
        difference = _exact(gold).symmetric_difference(_exact(answer)) if ours is theirs is None else None
        return difference is not None and difference.is_empty is True
    unordered = isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet)
    return _matched(ours, theirs, equal) if unordered else _equal_rows(ours, theirs)


def _items(value: Any) -> list[Any] | None:
    """Elements of a list; None for a set that cannot be listed."""
    if isinstance(value, Interval):  # a point of the plane is parsed as an open interval
        return [value.start, value.end] if value.left_open and value.right_open else None
    if isinstance(value, FiniteSet | Tuple):
        return list(getattr(value, "_unsorted_args", value.args))
    return None if isinstance(value, Set) else [value]


def _equal_rows(gold: list[Any], answer: list[Any]) -> bool:
    return len(gold) == len(answer) and all(equal(a, b) for a, b in zip(gold, answer, strict=True))


def _matched(gold: list[Any], answer: list[Any], same: Any) -> bool:
    """Whether two lists have equal elements in some order."""
    left = list(answer)
    for each in gold:
        place = next((place for place, other in enumerate(left) if same(each, other)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _as_set(value: Any) -> Set:
    """Numbers that solve inequalities in one variable."""
    return And(*(_exact(part) for part in _parts(value))).as_set()


def _equal_inequalities(gold: Relational, answer: Relational) -> bool:
    # `a < b` is `b > a`, and may be multiplied by a positive number.
    if type(gold) is not type(answer):
        answer = answer.reversed
    factor = _factor(gold.lhs - gold.rhs, answer.lhs - answer.rhs) if type(gold) is type(answer) else None
    return factor is not None and bool(factor.is_positive)


# --- numbers and expressions ------------------------------------------------------------------------------------------


def _equal_expressions(gold: Expr, answer: Expr) -> bool:
    percents = _percent(gold), _percent(answer)
    if (percents[0] is None) != (percents[1] is None):  # a sign that one of them left out
        one, other = (gold if percents[0] is None else percents[0], answer if percents[1] is None else percents[1])
        if _equal_expressions(one, other):
            return True
    words = isinstance(gold, Symbol) or isinstance(answer, Symbol)  # such as \text{even}
    if words and sympy_compare_symbols(gold, answer):
        return True
    exact = _exact(gold), _exact(answer)
    if exact[0].free_symbols or exact[1].free_symbols:
        return _is_identity(*exact)
    return exact[0] == exact[1] or _is_zero(exact[0] - exact[1]) or (_has_decimal(gold, answer) and _is_near(*exact))


def _percent(value: Expr) -> Expr | None:
    """Number before a percent sign."""
    sign = UnevaluatedExpr(Rational(1, 100))
    return value.args[0] if value.is_Mul and len(value.args) == 2 and value.args[1] == sign else None


def _has_decimal(*values: Expr) -> bool:
    return any(value.has(Float) for value in values)


def _exact(value: Any) -> Any:
    """Value with decimals as fractions, all variables real but the imaginary unit, and all operations carried out."""
    known = {number: Rational(str(number)) for number in value.atoms(Float)}
    # math-verify tells the unit from a variable by the spaces around it.
    known |= {name: I if name.name == "i" else Symbol(name.name, real=True) for name in value.atoms(Symbol)}
    return value.xreplace(known).doit()


def _is_zero(number: Expr) -> bool:
    if number.is_Rational:
        return bool(number == 0)
    try:
        return bool(number.evalf(2, maxn=DIGITS, strict=True) == 0)
    except PrecisionExhausted:
        found = number.evalf(2, maxn=DIGITS)
        # sympy marks a number of which nothing is left after DIGITS digits by a precision of one bit.
        return not (found.is_Float and found._prec > 1)


def _is_near(gold: Expr, answer: Expr) -> bool:
    # An integer is not what somebody rounds a result to: 9.999999 is not 10, and 9.999999 does not stand for 10.
    if gold.is_integer or answer.is_integer:
        return False
    return bool(abs(gold - answer).evalf() <= (TOLERANCE * abs(gold)).evalf() * (1 + Float("1e-9")))


def _is_identity(gold: Expr, answer: Expr) -> bool:
    """Whether two expressions are equal wherever both are real numbers."""
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    points = [{name: sign(k) * Rational(2 * k + 3, 2) for k, name in enumerate(names)} for sign in _SIGNS]
    # Numbers refute in no time what `simplify` takes seconds to give up; they do not prove.
    if any(_differ_at(gold, answer, point) for point in points):
        return False
    # 1/sqrt(n) and sqrt(1/n) are real for positive n alone; the points above hold what is real for others too.
    positive = {name: Symbol(name.name, positive=True) for name in names}
    return bool(simplify(expand_func((gold - answer).xreplace(positive))) == 0)


# Signs of the variables at the points, by a variable's place.
_SIGNS = (lambda k: 1, lambda k: -1, lambda k: (-1) ** k, lambda k: -((-1) ** k))


def _differ_at(gold: Expr, answer: Expr, point: dict[Any, Any]) -> bool:
    ours, theirs = _value_at(gold, point), _value_at(answer, point)
    return ours is not None and theirs is not None and not _is_zero(ours - theirs)


def _value_at(value: Expr, point: dict[Any, Any]) -> Expr | None:
    """Value at a point; None if a part of the expression, such as the root of a negative number, is not real there."""
    for power in value.atoms(type(Symbol("x") ** 2)):
        base, exponent = (part.subs(point) for part in power.args)
        if not exponent.is_integer and not base.is_nonnegative:
            return None
    found = value.subs(point).doit()
    return found if found.is_number and found.is_finite and not found.has(AppliedUndef) else None


# --- the judging process ------------------------------------------------------------------------------------------------


def serve(questions: Iterable[str], seconds: float) -> None:
    """Answer questions, each a line with reference and answer as JSON, by a line ``equal`` or ``different``.

    A question that takes longer ends the process, and so does one that takes too much memory.
    """
    # Beyond the limit an allocation raises MemoryError, which counts as different below.
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends the process, whatever it is doing
    verdicts, sys.stdout = sys.stdout, sys.stderr  # nothing else must be taken for a verdict
    read("1")  # the first takes long
    for question in questions:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal_texts(*json.loads(question))
        except Exception:  # math-verify and sympy raise many kinds on the text of a policy
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("equal" if verdict else "different", file=verdicts, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, float(sys.argv[1]))
