"""Answers of arithmetic: what earns a reward, and what tries to and does not."""

import pytest
from tiny_rollouts import completions_of

from lit_rl.rewards import ArithmeticAnswer, ArithmeticFormat
from lit_rl.types import Sample


def direct(reference: str) -> Sample:
    """A prompt that ends where the answer begins."""
    return Sample("<bos><big>1+2<answer>", "", reference, 7)


def stepwise(reference: str) -> Sample:
    """A prompt after which the completion announces its answer itself."""
    return Sample("<bos><big>1+2<scratchpad>", "", reference, 7)


def correct(sample: Sample, text: str, truncated: bool = False, **options) -> float:
    return float(ArithmeticAnswer(**options).score(completions_of([sample], [text], [truncated])))


# --- ArithmeticAnswer ------------------------------------------------------------------------------------------------


def test_the_reference_itself_is_right():
    for number in ("3", "0", "-12", "1/3", "-7/2", "1000000007"):
        assert correct(direct(number), number) == 1, number
        assert correct(stepwise(number), f"1+2=3<answer>{number}") == 1, number


OTHER_TEXTS = [
    "", " ", "nan", "inf", "-inf", "None", "3.0", "3.", "3e0", " 3", "3 ", "3\n", "+3", "03", "--3", "3/1/1", "0x3", "3_0",
    "3,", "(3)", "3<eos>", "3<answer>", "3<answer>3", "3 3", "33", "=3", "1+2", "3%", "\u0663", "\uff13", "\u00b3", "3\u200b",
    "-3", "3" * 100_000,
]  # fmt: skip


def test_any_text_but_the_number_as_it_is_written_is_wrong():
    for text in OTHER_TEXTS:
        assert correct(direct("3"), text) == 0, text[:20]


def test_other_ways_to_write_a_value_are_wrong():
    for reference, text in [("10", "+10"), ("10", "1e1"), ("10", "10.0"), ("1", "nan"), ("0", "-0"), ("0", "0/0"), ("0", "00")]:
        assert correct(direct(reference), text) == 0, (reference, text)


def test_a_fraction_counts_by_value():
    assert correct(direct("1/3"), "2/6") == 1
    assert correct(direct("2"), "4/2") == 1
    assert correct(direct("1/3"), "0.333333333333") == 0
    assert correct(direct("1/3"), "3/1") == 0
    assert correct(direct("-1/3"), "1/-3") == 0
    assert correct(direct("1/3"), "1/0") == 0


def test_an_answer_without_an_end_token_is_wrong():
    assert correct(direct("3"), "3", truncated=True) == 0
    assert correct(stepwise("3"), "<answer>3", truncated=True) == 0


NOT_ONE_ANSWER = [
    "3", "1+2=3", "=3", "0=0", "<answer>", "<answer>3<answer>3", "<answer>4<answer>3", "<answer>3<answer>4",
    "<answer>3 and more", "<answer>3<scratchpad>", "<answer>3<big>", "<answer>3<bos>", "<answer> 3", "<ANSWER>3", "answer>3",
    "1+2=3<answer>0=0",
]  # fmt: skip


def test_exactly_one_answer_must_be_announced_and_nothing_follow_it():
    for text in NOT_ONE_ANSWER:
        assert correct(stepwise("3"), text) == 0, text


def test_the_answer_in_the_prompt_is_not_read():
    sample = Sample("<bos>1+2<answer>3<scratchpad>", "", "3", 7)
    assert correct(sample, "") == 0
    assert correct(sample, "0=0") == 0
    assert correct(sample, "1+2=3<answer>3") == 1


def test_another_marker_is_read_if_it_is_named():
    sample = Sample("1+2=", "", "3", 7)
    assert correct(sample, "3", marker="=") == 1
    assert correct(sample, "3") == 0


LITTLE = [
    ("21", "21", 1),  # twelve
    ("21", "12", 0),
    ("-21", "-21", 1),
    ("-21", "21-", 0),
    ("01", "01", 1),  # ten: the leading zero is the ones digit
    ("01", "1", 0),
    ("1", "10", 0),  # one with a zero in front
    ("001", "01", 0),
    ("1/21", "1/21", 1),  # a twelfth
    ("1/21", "2/42", 1),  # two twenty-fourths
    ("1/21", "1/12", 0),
]


def test_in_little_order_digits_are_read_from_the_lowest_up():
    for reference, text, reward in LITTLE:
        assert correct(direct(reference), text, digit_order="little") == reward, (reference, text)


def test_a_reference_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="the reference 'none' of sample 7 is not a number in digit_order big"):
        correct(direct("none"), "none")


def test_every_completion_is_compared_with_its_own_prompt():
    rollouts = completions_of([direct("3"), direct("4")], ["3", "4", "3", "4"])
    assert ArithmeticAnswer().score(rollouts).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_unanimous_wrong_group_earns_less_than_a_right_one():
    rollouts = completions_of([direct("3"), direct("3")], ["4", "4", "3", "5"])
    assert ArithmeticAnswer().score(rollouts).view(2, 2).sum(1).tolist() == [0.0, 1.0]


def test_answers_compare_by_value():
    rollouts = completions_of([direct("1/2")], ["1/2", "2/4", "0.5", "1/2"], [False, False, False, True])
    first, second, third, fourth = ArithmeticAnswer().answers(rollouts)
    assert first == second
    assert third is None
    assert fourth is None


# --- ArithmeticFormat ------------------------------------------------------------------------------------------------


def test_format_pays_for_an_answer_in_the_right_form():
    texts = ["<answer>3", "<answer>4", "3", "<answer>nan", "<answer>3<answer>3", "<answer>1/2"]
    assert ArithmeticFormat().score(completions_of([stepwise("3")], texts)).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_format_does_not_pay_for_a_truncated_answer():
    assert ArithmeticFormat().score(completions_of([direct("3")], ["3"], [True])).tolist() == [0.0]
