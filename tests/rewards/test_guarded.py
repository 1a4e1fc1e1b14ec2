"""Guarded rewards: errors and slow calls cost the completions that they belong to, and nothing else."""

import threading

import pytest
import torch
from tiny_rollouts import completions_of

from lit_rl.objectives.advantages import relative_advantages
from lit_rl.rewards import AnswerReward, Guarded, Reward, WeightedSum
from lit_rl.rewards.base import RewardError, score_rollouts
from lit_rl.types import Sample

SAMPLES = [Sample("a", "", "1", 41), Sample("b", "", "2", 42)]


class Text(Reward):
    """Pays the number that a completion is; ``?`` raises, ``wait`` takes until it is allowed to end."""

    def __init__(self, alone=True):
        self.alone, self.gate = alone, threading.Event()

    def score(self, rollouts):
        return torch.tensor([self._number(text) for text in rollouts.texts])

    def _number(self, text):
        if text == "wait":
            self.gate.wait(60)
            return 0.0
        return float(text)


def scored(reward, texts):
    rollouts = completions_of(SAMPLES, texts)
    score_rollouts(reward, rollouts)
    return rollouts


def test_a_row_that_fails_is_left_out_and_the_others_keep_their_scores():
    rollouts = scored(Guarded(Text()), ["1", "?", "3", "4"])
    assert rollouts.scored.tolist() == rollouts.in_loss.tolist() == [True, False, True, True]
    assert rollouts.rewards.tolist() == [1, 0, 3, 4]
    assert rollouts.drop_unscored().rewards.tolist() == [1, 3, 4]


def test_a_score_that_is_not_finite_is_an_error_of_its_row():
    for text in ("nan", "inf", "-inf"):
        assert scored(Guarded(Text()), ["1", text, "3", "4"]).scored.tolist() == [True, False, True, True], text


def test_a_reward_that_compares_completions_loses_the_group():
    assert scored(Guarded(Text(alone=False)), ["1", "?", "3", "4"]).scored.tolist() == [False, False, True, True]


def test_a_call_past_the_time_limit_is_an_error():
    text = Text()
    rollouts = scored(Guarded(text, time_limit=0.2), ["1", "2", "wait", "4"])
    text.gate.set()
    assert rollouts.scored.tolist() == [True, True, False, True]
    assert rollouts.rewards.tolist() == [1, 2, 0, 4]


def test_a_guarded_reward_may_stop_the_run_instead():
    with pytest.raises(RewardError, match=r"^reward text: ValueError: could not convert .* \(sample 41\)$"):
        scored(Guarded(Text(), on_error="stop"), ["1", "?", "3", "4"])
    text = Text()
    with pytest.raises(RewardError, match=r"^reward text: no score within time_limit 0.1 s for samples \[41, 42\]\.$"):
        scored(Guarded(text, on_error="stop", time_limit=0.1), ["1", "wait", "3", "4"])
    text.gate.set()


def test_advantages_are_those_of_the_rows_that_were_scored():
    rollouts = scored(Guarded(Text()), ["1", "?", "3", "7"]).drop_unscored()
    penalties = torch.zeros_like(rollouts.logprobs)
    advantages = relative_advantages(rollouts, penalties, "group", "none", lambda value: value, lambda value: value)
    # Group of 1 alone: nothing to compare with. Group of 3 and 7: mean 5.
    assert advantages[:, 0].tolist() == [0, -2, 2]


def test_a_group_that_fails_whole_stays_in_its_place_without_loss():
    rollouts = scored(Guarded(Text()), ["?", "?", "3", "7"]).drop_unscored()
    assert rollouts.num_groups == 2
    assert rollouts.loss_mask.any(1).tolist() == [False, False, True, True]
    penalties = torch.zeros_like(rollouts.logprobs)
    advantages = relative_advantages(rollouts, penalties, "group", "batch", lambda value: value, lambda value: value)
    # The std of the batch is that of 3 and 7, 2.828: the failed rows' zeros have no part in it.
    assert advantages[:, 0].tolist() == pytest.approx([0, 0, -2 / (8**0.5 + 1e-4), 2 / (8**0.5 + 1e-4)])


def test_a_row_is_left_out_of_a_sum_if_one_of_its_rewards_fails():
    class Number(AnswerReward):
        name = "number"

        def read(self, text, sample):
            return text

        def is_right(self, answer, sample):
            return answer == sample.reference

    rollouts = scored(WeightedSum([Guarded(Text()), Number()], [1.0, 10.0]), ["1", "?", "3", "2"])
    assert rollouts.rewards.tolist() == [11, 0, 3, 12]
    assert rollouts.scored.tolist() == [True, False, True, True]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"reward.on_error is 'ignore'; write one of stop, skip\."):
        Guarded(Text(), on_error="ignore")
    with pytest.raises(ValueError, match=r"reward.time_limit is -1"):
        Guarded(Text(), time_limit=-1)
