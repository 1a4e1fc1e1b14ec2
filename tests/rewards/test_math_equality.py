"""Equality of mathematical answers: exact, except beside decimals, and never bought by notation."""

import json
import re

import pytest
from math_runs import real_file

from lit_rl.rewards.math_equality import equal_texts
from lit_rl.rewards.math_judge import equal_answers
from lit_rl.rewards.notation import bare_formula

EQUAL = [
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\sqrt{4009}}{2^{2004}}", r"\sqrt{4009}\cdot 2^{-2004}"),
    (r"\sqrt{\frac{1}{n}}", r"\frac{1}{\sqrt{n}}"),
    ("a^2-b^2", "(a-b)(a+b)"),
    (r"\binom{n}{2}", "n(n-1)/2"),
    ("2i", "(1+i)^2"),
    ("1/3", "0.333333"),
    (r"\pi", "3.14159"),
    (r"1.813759629294 \cdot 10^{12}", "1813759629294"),
    ("0.5x", "x/2"),
    ("50\\%", "50"),
    ("50\\%", "0.5"),
    ("x=5", "5"),
    ("5", "a=b=5"),
    ("5", "2+3=5"),
    ("x+2y=2", "x/2+y=1"),
    ("x<1/2", "1/2>x"),
    (r"0 \leq r \leq \frac{1}{2}", r"[0,\frac{1}{2}]"),
    ("(1,2)", "(1, 2)"),
    ("1, 2", r"2 \text{ and } 1"),
    ("x=1,y=2", "(1,2)"),
    (r"\text{even}", "Even"),
]


def test_answers_of_equal_value_are_equal():
    for gold, answer in EQUAL:
        assert equal_texts(gold, answer), (gold, answer)


UNEQUAL = [
    ("2", "1=2"),
    (r"\frac{1}{2^{2012}}", "0.000000000000000000000000000001"),
    (r"\frac{1}{2^{2012}}", "0"),
    (r"1-\left(\frac{1}{2}\right)^{2016}", r"1-\left(\frac{1}{2}\right)^{2017}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{\sqrt{4009}}{2^{2004}}", r"\frac{\sqrt{4009}}{2^{2005}}"),
    ("e^{23110}", "e^{23110}+1"),
    ("1+2^{-300}x", "1"),
    ("1/3", "0.33"),
    ("127009", "127009.1"),  # closer than a millionth, but integers are exact
    ("10", "9.999999"),
    ("x", r"\sqrt{x^2}"),
    ("x^2+1=0", "x^2+2=0"),  # neither has a real solution
    ("1=2", "3=4"),
    ("x=5", "y=5"),
    ("x<1", r"x\le 1"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("1,1,2", "1,2,2"),
    (r"\frac{1}{2} \max A + 3", r"\frac{1}{2} \max A + 4"),  # unreadable as a whole, but for a fraction
]


def test_answers_of_other_values_are_not():
    for gold, answer in UNEQUAL:
        assert not equal_texts(gold, answer), (gold, answer)


def test_notation_around_a_formula_does_not_count():
    for text in (r"10{,}000", r"10\,000", "10,000", "10 000", "$10000$", "10000.", r"10,\!000;"):
        assert equal_answers("10000", bare_formula(text)), text


def changed(reference: str) -> str | None:
    """A reference with its first exponent raised by 1, or its first factorial by 2; None without either."""
    if found := re.search(r"\^\{?(\d+)", reference):
        return f"{reference[: found.start(1)]}{int(found[1]) + 1}{reference[found.end(1) :]}"
    if found := re.search(r"(\d+)!", reference):
        return f"{reference[: found.start(1)]}{int(found[1]) + 2}{reference[found.end(1) :]}"
    return None


@pytest.mark.long
def test_real_references_pay_neither_a_changed_exponent_nor_a_contradiction():
    with open(real_file("omni_math_rule.jsonl"), encoding="utf-8") as lines:
        references = dict.fromkeys(json.loads(line)["answer"].strip() for line in lines)
    # Numbers of one formula: in units, words and boxes a change may mean nothing.
    powers = [each for each in references if re.search(r"\^\{?\d\d|!", each) and not re.search(r"\\\[|mathrm|circ|boxed", each)]
    assert len(powers) > 30
    paid = [each for each in powers if (other := changed(each)) and equal_answers(each, other)]
    assert paid == []
    assert [each for each in powers if each != "1" and equal_answers(each, f"1={each}")] == []
    assert [each for each in powers if not equal_answers(each, bare_formula(f"{each}."))] == []
