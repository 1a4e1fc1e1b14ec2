"""Worked solutions of expressions, as chains of true statements.

``12+34*5`` is worked as ``34*5=170,12+170=182``: each statement reduces one operator whose operands are numbers, left
to right and innermost first, and the last statement gives the value. With columns, sums and differences of longer integers
are worked from the lowest digit up: ``57+68`` as ``7+8=15,5+6+1=12,57+68=125``, and ``52-38`` as
``12-8=4,4-3=1,52-38=14``, where 12 has borrowed a ten and 4 has lent it. Every statement is true by the ordinary rules
and written in the digit order of its problem. Commas outside parentheses separate statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import zip_longest

from lit_rl.tasks.infix import PRECEDENCE, Node
from lit_rl.tasks.numbers import DigitOrder, write_number


def steps(node: Node, order: DigitOrder = "big", columns: bool = False) -> str:
    """Work an expression.

    Args:
        node: the expression, with an operator at its root.
        order: order of the digits within each number.
        columns: whether integers of two digits or more are added and subtracted column by column.
    """
    return ",".join(_statements(node, order, columns))


def _statements(node: Node, order: DigitOrder, columns: bool) -> Iterator[str]:
    for child in node.children:
        if child.children:
            yield from _statements(child, order, columns)
    values = [child.value for child in node.children]
    if columns and node.operator in ("+", "-") and _is_long(values):
        left, right = (value.numerator for value in values)
        yield from _column_statements(left, node.operator, right, order)
    yield _statement(node.operator, values, node.value, order)


def _is_long(values: Sequence[Fraction]) -> bool:
    return all(value.denominator == 1 for value in values) and max(map(abs, values)) >= 10


def _statement(operator: str, values: Sequence[Fraction | int], result: Fraction | int, order: DigitOrder) -> str:
    if operator in PRECEDENCE:
        left_hand_side = operator.join(_operand(value, order) for value in values)
    else:
        left_hand_side = f"{operator}({','.join(write_number(value, order) for value in values)})"
    return f"{left_hand_side}={write_number(result, order)}"


def _operand(value: Fraction | int, order: DigitOrder) -> str:
    text = write_number(value, order)
    # A bare fraction would be a division of its own: 2/1/3 is not 2/(1/3).
    return text if value.denominator == 1 else f"({text})"


def _column_statements(left: int, operator: str, right: int, order: DigitOrder) -> Iterator[str]:
    """Columns of the magnitudes, then the statement about the magnitudes, unless it is the problem's own."""
    # Columns have no signs: two summands of one sign are added, two of different signs subtracted.
    added = right if operator == "+" else -right
    if (left < 0) == (added < 0):
        magnitude_operator, first, second = "+", abs(left), abs(right)
        result = first + second
        yield from _sum_columns(first, second, order)
    else:
        magnitude_operator = "-"
        # Larger minus smaller: otherwise the highest column would have to borrow from nothing.
        second, first = sorted((abs(left), abs(right)))
        result = first - second
        yield from _difference_columns(first, second, order)
    if (magnitude_operator, first, second) != (operator, left, right):
        yield _statement(magnitude_operator, (first, second), result, order)


def _sum_columns(first: int, second: int, order: DigitOrder) -> Iterator[str]:
    carry = 0
    for pair in zip_longest(reversed(str(first)), reversed(str(second))):
        terms = [int(digit) for digit in pair if digit is not None]
        if carry:
            terms.append(carry)
        # A lone digit goes down as it is. The last carry needs no column: it is the front digit of the last sum.
        if len(terms) > 1:
            yield _statement("+", terms, sum(terms), order)
        carry = sum(terms) // 10


def _difference_columns(large: int, small: int, order: DigitOrder) -> Iterator[str]:
    """Statements of a difference of magnitudes; a column that lent a ten starts one lower."""
    borrowed = 0
    for upper, lower in zip_longest(reversed(str(large)), reversed(str(small))):
        if lower is None:
            # The higher digits of the large magnitude stay as they are.
            if not borrowed:
                return
            top, taken = int(upper), borrowed
        else:
            # At -1, after a 0 lent a ten, the top is below any digit and borrows in turn.
            top, taken = int(upper) - borrowed, int(lower)
        borrowed = int(top < taken)
        top += 10 * borrowed
        yield _statement("-", (top, taken), top - taken, order)
