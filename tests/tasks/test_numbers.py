from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.tasks.numbers import read_number, write_number


@pytest.mark.parametrize(
    ("value", "big", "little"),
    [
        (Fraction(0), "0", "0"),
        (Fraction(-12), "-12", "-21"),
        (Fraction(10), "10", "01"),
        (Fraction(1, 12), "1/12", "1/21"),
        (Fraction(-4, 6), "-2/3", "-2/3"),
        (Fraction(-340, 21), "-340/21", "-043/12"),
    ],
)
def test_written_numbers(value, big, little):
    assert (write_number(value, "big"), write_number(value, "little")) == (big, little)


@settings(derandomize=True)
@given(st.fractions(), st.sampled_from(["big", "little"]))
def test_reading_inverts_writing(value, order):
    assert read_number(write_number(value, order), order) == value


NOT_NUMBERS = (
    *("", "-", "/", "1/", "/2", "--3", "- 3", "1//2", "1/2/3", "1/-2"),
    *("3.0", " 3 ", "3 ", "3\n", "+10", "1e1", "0x1", "1_000", "1,000", "nan", "inf", "three", "0=0"),
    *("1/0", "007", "-0", "-0/5", "1/02"),
    *("\u0663", "\u00b2"),  # three in Arabic-Indic digits, a superscript two
)


def test_other_texts_are_not_numbers():
    assert [text for text in NOT_NUMBERS if read_number(text, "big") is not None] == []


def test_little_order_has_no_zeros_at_the_high_end():
    assert [text for text in ("10", "-10", "1/20", "700") if read_number(text, "little") is not None] == []


def test_fraction_need_not_be_in_lowest_terms():
    assert read_number("2/6", "big") == Fraction(1, 3)


def test_little_order_reverses_numerator_and_denominator():
    assert read_number("-01/12", "little") == Fraction(-10, 21)


@pytest.mark.parametrize(("length", "is_read"), [(1000, True), (1001, False), (100_000, False)])
def test_very_long_texts_are_not_read(length, is_read):
    assert (read_number("9" * length, "big") is not None) == is_read


@settings(derandomize=True)
@given(st.text(alphabet="0123456789-/+. e", max_size=8), st.sampled_from(["big", "little"]))
def test_whatever_is_read_as_an_integer_is_written_back(text, order):
    value = read_number(text, order)
    assert value is None or "/" in text or write_number(value, order) == text
