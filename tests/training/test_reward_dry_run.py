"""Rewards and judges on right answers of the data, before the first step."""

import warnings

import pytest
import torch

from lit_rl.rewards import ArithmeticAnswer, DensePrefixMatch, FinalNumber, Guarded, MathAnswer, PrefixMatch, Reward
from lit_rl.training.dry_run import SAMPLES, check_judge, check_reward, some_of
from lit_rl.types import Sample

NUMBERS = [Sample("How many?", f"So it is {n}.\n#### {n}", str(n), n) for n in range(10)]
WORDS = [Sample("Which town?", "", "Paris", 3)]


class Own(Reward):
    """Pays a value, or raises it."""

    def __init__(self, value):
        self.value = value

    def score(self, rollouts):
        if isinstance(self.value, Exception):
            raise self.value
        return torch.full((len(rollouts),), self.value)


def test_rewards_that_read_the_data_pass_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reward in (FinalNumber(), MathAnswer(), ArithmeticAnswer(marker="####"), Guarded(FinalNumber()), PrefixMatch()):
            check_reward(
                reward, [sample._replace(completion=f"#### {sample.reference}".replace(" ", "")) for sample in NUMBERS]
            )
        check_judge(FinalNumber(), NUMBERS)
        check_judge(MathAnswer(), WORDS)


def test_a_reward_that_fails_is_found():
    with pytest.raises(ValueError, match=r"^reward own: KeyError: 'gold' \(sample 0\)$"):
        check_reward(Own(KeyError("gold")), NUMBERS)
    with pytest.raises(ValueError, match=r"^reward own: nan for sample 0"):
        check_reward(Own(torch.nan), NUMBERS)
    with pytest.raises(ValueError, match=r"^reward own fails on a right answer to sample 0.*on_error stop"):
        check_reward(Guarded(Own(KeyError("gold"))), NUMBERS)


def test_a_reward_that_cannot_read_the_references_is_found():
    with pytest.raises(ValueError, match=r"the reference 'Paris' of sample 3 is not a number"):
        check_reward(FinalNumber(), WORDS)


def test_a_reward_that_pays_nothing_for_right_answers_is_a_warning():
    with pytest.warns(UserWarning, match=r"reward own pays nothing for right answers of the data, such as .* to sample 0;"):
        check_reward(Own(0.0), NUMBERS)


def test_a_reward_that_asks_the_policy_waits_for_it():
    check_reward(DensePrefixMatch(), NUMBERS)


def test_text_references_under_the_default_judge_are_found_with_what_to_write():
    with pytest.raises(ValueError, match=r"model.evaluation judges by ArithmeticAnswer, .*'Paris' of sample 3 .*MathAnswer"):
        check_judge(ArithmeticAnswer(), WORDS)


def test_samples_are_spread_over_the_data():
    assert [sample.number for sample in some_of(NUMBERS)] == [0, 2, 5, 7]
    assert len(some_of(NUMBERS)) == SAMPLES
    assert some_of(WORDS) == WORDS
