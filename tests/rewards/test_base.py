"""Names of rewards in the log, weighted sums, and errors of a broken reward."""

import pytest
import torch
from tiny_rollouts import completions_of
from torch import Tensor

import lit_rl.rewards
from lit_rl.rewards import ArithmeticAnswer, ArithmeticFormat, Reward, WeightedSum
from lit_rl.rewards.base import score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.types import Sample

THREE = Sample("<bos><big>1+2<answer>", "", "3", 7)

NAMES = {
    "ArithmeticAnswer": "correct",
    "ArithmeticFormat": "format",
    "DensePrefixMatch": "prefix_match",
    "FinalNumber": "finalnumber",
    "InformationGain": "information_gain",
    "MajorityVote": "majority_vote",
    "MathAnswer": "boxedmath",
    "PrefixMatch": "prefix_match",
    "RPNAnswer": "correct",
    "RPNFormat": "boxed",
    "RPNProgress": "partial_credit",
    "RPNReward": "combinedreward",
    "RegimeW": "regime_w",
}
"""Name in the log by class: dashboards and recorded runs know them."""


class Given(Reward):
    """Returns what it was made with, and raises it if it is an error."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def score(self, rollouts: Rollouts) -> Tensor:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value  # type: ignore[return-value]


def test_rewards_are_logged_by_these_names():
    assert set(NAMES) == set(lit_rl.rewards.__all__) - {"AnswerFormat", "AnswerReward", "Guarded", "Reward", "WeightedSum"}
    assert {kind: getattr(lit_rl.rewards, kind)().name for kind in NAMES} == NAMES
    assert WeightedSum([], []).name == "weightedsum"
    assert Given().name == "given"


# --- WeightedSum -----------------------------------------------------------------------------------------------------


def test_a_weighted_sum_adds_up_and_shows_its_parts():
    rollouts = completions_of([THREE], ["3", "4", "x"])
    score_rollouts(WeightedSum([ArithmeticAnswer(), ArithmeticFormat()], [1.0, 0.25]), rollouts)
    assert rollouts.rewards.tolist() == [1.25, 0.25, 0.0]
    assert {name: part.tolist() for name, part in rollouts.parts.items()} == {
        "correct": [1.0, 0.0, 0.0],
        "format": [1.0, 1.0, 0.0],
    }


def test_a_weighted_sum_of_weighted_sums_adds_up():
    rollouts = completions_of([THREE], ["3", "4", "x"])
    score_rollouts(WeightedSum([WeightedSum([ArithmeticAnswer()], [4.0]), ArithmeticFormat()], [0.5, -1.0]), rollouts)
    assert rollouts.rewards.tolist() == [1.0, -1.0, 0.0]


def test_a_weight_for_each_reward_is_required():
    with pytest.raises(ValueError, match=r"^WeightedSum has 2 rewards and 1 weights; .*$"):
        WeightedSum([ArithmeticAnswer(), ArithmeticFormat()], [1.0])


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"^WeightedSum has two rewards of one name in \['correct', 'correct'\]; .*$"):
        WeightedSum([ArithmeticAnswer(), ArithmeticAnswer("=")], [1.0, 1.0])


def test_rewards_without_state_have_none_and_take_none():
    reward = WeightedSum([ArithmeticAnswer(), Given()], [1.0, 1.0])
    assert reward.state_dict() == {"correct": {}, "given": {}}
    reward.load_state_dict({})
    reward.load_state_dict(reward.state_dict())


# --- rewards of users ------------------------------------------------------------------------------------------------


def two_samples() -> Rollouts:
    samples = [Sample("", "", "3", 41), Sample("", "", "4", 42)]
    return completions_of(samples, ["a", "b", "c", "d"])


BROKEN = {
    "reward given: ZeroDivisionError: division by zero (sample 41)": ZeroDivisionError("division by zero"),
    "reward given: KeyError: 'gold' (sample 41)": KeyError("gold"),
    "reward given: RuntimeError: first (sample 41)": RuntimeError("first\nsecond"),
    "reward given: nan for sample 42, completion 'c'.": torch.tensor([1.0, 0.0, torch.nan, torch.nan]),
    "reward given: -inf for sample 41, completion 'b'.": torch.tensor([1.0, -torch.inf, 0.0, 0.0]),
    "reward given: shape (3,) for 4 completions; return one number each.": torch.ones(3),
    "reward given: shape (2, 2) for 4 completions; return one number each.": torch.ones(2, 2),
    "reward given: shape () for 4 completions; return one number each.": torch.tensor(1.0),
    "reward given: a list; return a tensor with one number per completion.": [1.0, 0.0, 1.0, 0.0],
    "reward given: a NoneType; return a tensor with one number per completion.": None,
    "reward given: a tensor that requires grad; return it detached, or compute it under torch.no_grad.": torch.ones(
        4, requires_grad=True
    ),
}
"""Values of a broken reward by the message that they get."""


def test_a_broken_reward_is_an_error_of_one_line_that_names_it():
    for message, value in BROKEN.items():
        with pytest.raises(ValueError, match=r"^reward given") as error:
            score_rollouts(Given(value), two_samples())
        assert str(error.value) == message


def test_a_broken_reward_inside_a_weighted_sum_is_named_alone():
    for value in (ZeroDivisionError("division by zero"), torch.ones(3)):
        with pytest.raises(ValueError, match=r"^reward given: [^:]*(: division by zero .sample 41.)?$"):
            score_rollouts(WeightedSum([ArithmeticAnswer(), Given(value)], [1.0, 0.0]), two_samples())


def test_weights_that_overflow_are_an_error_too():
    with pytest.raises(ValueError, match=r"^reward weightedsum: inf for sample 41, completion 'a'\.$"):
        score_rollouts(WeightedSum([Given(torch.full((4,), 1e30))], [1e30]), two_samples())


def test_a_failing_reward_leaves_the_rollouts_unscored():
    rollouts = two_samples()
    with pytest.raises(ValueError, match="nan"):
        score_rollouts(Given(torch.full((4,), torch.nan)), rollouts)
    assert rollouts.rewards.tolist() == [0.0] * 4


def test_rewards_of_any_number_type_become_float32():
    for dtype in (torch.bool, torch.long, torch.float64):
        rollouts = two_samples()
        score_rollouts(Given(torch.tensor([1, 0, 1, 1], dtype=dtype)), rollouts)
        assert rollouts.rewards.dtype == torch.float32, dtype
        assert rollouts.rewards.tolist() == [1.0, 0.0, 1.0, 1.0], dtype
        assert rollouts.parts["given"].tolist() == [1.0, 0.0, 1.0, 1.0], dtype
