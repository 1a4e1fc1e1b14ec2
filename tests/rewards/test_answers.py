"""What earns a reward, what tries to and does not, and what a broken reward gets."""

import pytest
import torch
from torch import Tensor

from lit_rl.rewards import ArithmeticAnswer, ArithmeticFormat, Reward, WeightedSum
from lit_rl.rewards.base import score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample


def rollouts_of(samples: list[Sample], texts: list[str], truncated: list[bool] | None = None) -> Rollouts:
    """Decoded completions as rollouts; the tokens themselves play no part."""
    prompts = PromptBatch.pad([[1] for _ in samples], [[] for _ in samples], samples, 0)
    rows = len(texts)
    zeros = torch.zeros(rows, 1)
    cut = torch.tensor(truncated or [False] * rows)
    ones = torch.ones(rows).long()
    return Rollouts(prompts, rows // len(samples), zeros.long(), ones, cut, zeros, zeros, torch.ones(rows), texts=texts)


def direct(reference: str) -> Sample:
    """A prompt that ends where the answer begins."""
    return Sample("<bos><big>1+2<answer>", "", reference, 7)


def stepwise(reference: str) -> Sample:
    """A prompt after which the completion announces its answer itself."""
    return Sample("<bos><big>1+2<scratchpad>", "", reference, 7)


def correct(sample: Sample, text: str, truncated: bool = False, **options) -> float:
    return float(ArithmeticAnswer(**options).score(rollouts_of([sample], [text], [truncated])))


# --- ArithmeticAnswer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["3", "0", "-12", "1/3", "-7/2", "1000000007"])
def test_the_reference_itself_is_right(number):
    assert correct(direct(number), number) == 1
    assert correct(stepwise(number), f"1+2=3<answer>{number}") == 1


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "nan", "inf", "-inf", "None", "3.0", "3.", "3e0", " 3", "3 ", "3\n", "+3", "03", "--3", "3/1/1", "0x3", "3_0",
        "3,", "(3)",
        "3<eos>", "3<answer>", "3<answer>3", "3 3", "33", "=3", "1+2", "3%", "\u0663", "\uff13", "\u00b3",
        "3\u200b", "-3",
    ],
)  # fmt: skip
def test_what_is_not_the_number_as_it_is_written_is_wrong(text):
    assert correct(direct("3"), text) == 0


@pytest.mark.parametrize(
    ("reference", "text"), [("10", "+10"), ("10", "1e1"), ("10", "10.0"), ("1", "nan"), ("0", "-0"), ("0", "0/0"), ("0", "00")]
)
def test_other_ways_to_write_a_value_are_wrong(reference, text):
    assert correct(direct(reference), text) == 0


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


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "1+2=3",
        "<answer>",
        "<answer>3<answer>3",
        "<answer>4<answer>3",
        "<answer>3<answer>4",
        "<answer>3 and more",
        "<answer>3<scratchpad>",
        "<answer>3<big>",
        "<answer>3<bos>",
        "<answer> 3",
        "<ANSWER>3",
        "answer>3",
    ],
)
def test_exactly_one_answer_must_be_announced_and_nothing_follow_it(text):
    assert correct(stepwise("3"), text) == 0


def test_the_answer_in_the_prompt_is_not_read():
    sample = Sample("<bos>1+2<answer>3<scratchpad>", "", "3", 7)
    assert correct(sample, "") == 0
    assert correct(sample, "0=0") == 0
    assert correct(sample, "1+2=3<answer>3") == 1


def test_a_true_step_does_not_stand_in_for_the_answer():
    assert correct(stepwise("3"), "0=0") == 0
    assert correct(stepwise("3"), "=3") == 0
    assert correct(stepwise("3"), "1+2=3<answer>0=0") == 0


def test_another_marker_is_read_where_it_is_named():
    sample = Sample("1+2=", "", "3", 7)
    assert correct(sample, "3", marker="=") == 1
    assert correct(sample, "3") == 0


@pytest.mark.parametrize(
    ("reference", "text", "reward"),
    [
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
    ],
)
def test_in_little_order_digits_are_read_from_the_lowest_up(reference, text, reward):
    assert correct(direct(reference), text, digit_order="little") == reward


def test_a_number_too_long_to_read_is_wrong_and_no_error():
    assert correct(direct("3"), "3" * 100_000) == 0


def test_a_reference_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="the reference 'none' of sample 7 is no number in digit_order big"):
        correct(direct("none"), "none")


def test_every_completion_is_compared_with_its_own_prompt():
    rollouts = rollouts_of([direct("3"), direct("4")], ["3", "4", "3", "4"])
    assert ArithmeticAnswer().score(rollouts).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_unanimous_wrong_group_earns_less_than_a_right_one():
    rollouts = rollouts_of([direct("3"), direct("3")], ["4", "4", "3", "5"])
    assert ArithmeticAnswer().score(rollouts).view(2, 2).sum(1).tolist() == [0.0, 1.0]


def test_answers_compare_by_value():
    rollouts = rollouts_of([direct("1/2")], ["1/2", "2/4", "0.5", "1/2"], [False, False, False, True])
    first, second, third, fourth = ArithmeticAnswer().answers(rollouts)
    assert first == second
    assert third is None
    assert fourth is None


# --- ArithmeticFormat ------------------------------------------------------------------------------------------------------


def test_format_pays_for_an_answer_in_the_right_form():
    rollouts = rollouts_of([stepwise("3")], ["<answer>3", "<answer>4", "3", "<answer>nan", "<answer>3<answer>3", "<answer>1/2"])
    assert ArithmeticFormat().score(rollouts).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_format_does_not_pay_for_a_truncated_answer():
    assert ArithmeticFormat().score(rollouts_of([direct("3")], ["3"], [True])).tolist() == [0.0]


# --- WeightedSum -------------------------------------------------------------------------------------------------


def test_a_weighted_sum_adds_up_and_shows_its_parts():
    rollouts = rollouts_of([direct("3")], ["3", "4", "x"])
    score_rollouts(WeightedSum([ArithmeticAnswer(), ArithmeticFormat()], [1.0, 0.25]), rollouts)
    assert rollouts.rewards.tolist() == [1.25, 0.25, 0.0]
    assert {name: part.tolist() for name, part in rollouts.parts.items()} == {
        "correct": [1.0, 0.0, 0.0],
        "format": [1.0, 1.0, 0.0],
    }


def test_a_weighted_sum_of_weighted_sums_adds_up():
    rollouts = rollouts_of([direct("3")], ["3", "4", "x"])
    score_rollouts(WeightedSum([WeightedSum([ArithmeticAnswer()], [4.0]), ArithmeticFormat()], [0.5, -1.0]), rollouts)
    assert rollouts.rewards.tolist() == [1.0, -1.0, 0.0]


def test_a_weight_for_each_reward_is_required():
    with pytest.raises(ValueError, match=r"^WeightedSum has 2 rewards and 1 weights; .*$"):
        WeightedSum([ArithmeticAnswer(), ArithmeticFormat()], [1.0])


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"^WeightedSum has two rewards of one name in \['correct', 'correct'\]; .*$"):
        WeightedSum([ArithmeticAnswer(), ArithmeticAnswer("=")], [1.0, 1.0])


# --- rewards of users --------------------------------------------------------------------------------------------


class Given(Reward):
    """Returns what it was made with, and raises it where it is an error."""

    def __init__(self, value: object) -> None:
        self.value = value

    def score(self, rollouts: Rollouts) -> Tensor:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value  # type: ignore[return-value]


def two_samples() -> Rollouts:
    samples = [Sample("", "", "3", 41), Sample("", "", "4", 42)]
    return rollouts_of(samples, ["a", "b", "c", "d"])


@pytest.mark.parametrize("wrap", [lambda reward: reward, lambda reward: WeightedSum([ArithmeticAnswer(), reward], [1.0, 0.0])])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ZeroDivisionError("division by zero"), "reward given: ZeroDivisionError: division by zero"),
        (KeyError("gold"), "reward given: KeyError: 'gold'"),
        (RuntimeError("first\nsecond"), "reward given: RuntimeError: first"),
        (torch.tensor([1.0, 0.0, torch.nan, torch.nan]), "reward given: nan for sample 42, completion 'c'."),
        (torch.tensor([1.0, -torch.inf, 0.0, 0.0]), "reward given: -inf for sample 41, completion 'b'."),
        (torch.ones(3), "reward given: shape (3,) for 4 completions; return one number each."),
        (torch.ones(2, 2), "reward given: shape (2, 2) for 4 completions; return one number each."),
        (torch.tensor(1.0), "reward given: shape () for 4 completions; return one number each."),
        ([1.0, 0.0, 1.0, 0.0], "reward given: a list; return a tensor with one number per completion."),
        (None, "reward given: a NoneType; return a tensor with one number per completion."),
    ],
)
def test_a_broken_reward_is_an_error_of_one_line_that_names_it(wrap, value, message):
    with pytest.raises(ValueError, match=r"^reward given") as error:
        score_rollouts(wrap(Given(value)), two_samples())
    assert str(error.value) == message


def test_weights_that_overflow_are_an_error_too():
    with pytest.raises(ValueError, match=r"^reward weightedsum: inf for sample 41, completion 'a'\.$"):
        score_rollouts(WeightedSum([Given(torch.full((4,), 1e30))], [1e30]), two_samples())


def test_a_failing_reward_leaves_the_rollouts_unscored():
    rollouts = two_samples()
    with pytest.raises(ValueError, match="nan"):
        score_rollouts(Given(torch.full((4,), torch.nan)), rollouts)
    assert rollouts.rewards.tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float64])
def test_rewards_of_any_number_type_become_float32(dtype):
    rollouts = two_samples()
    score_rollouts(Given(torch.tensor([1, 0, 1, 1], dtype=dtype)), rollouts)
    assert rollouts.rewards.dtype == torch.float32
    assert rollouts.rewards.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert rollouts.parts["given"].tolist() == [1.0, 0.0, 1.0, 1.0]
