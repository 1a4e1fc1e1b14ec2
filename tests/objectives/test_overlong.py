"""Treatment of completions that are too long."""

import pytest
import torch

from lit_rl.objectives import Overlong
from lit_rl.objectives.overlong import soft_overlong_penalty
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample

LIMIT = 8


def rollouts() -> Rollouts:
    """One group of completions of 3, 4, 6 and 8 tokens, the last one cut off at the limit."""
    prompts = PromptBatch.pad([[4]], [[]], [Sample("prompt", "", "0", 100)], 9)
    lengths = torch.tensor([3, 4, 6, 8])
    zeros = torch.zeros(4, LIMIT)
    return Rollouts(
        prompts,
        completion_ids=zeros.long(),
        lengths=lengths,
        truncated=torch.tensor([False, False, False, True]),
        logprobs=zeros,
        entropies=zeros,
        temperature=torch.ones(4),
        rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        parts={"correct": torch.tensor([1.0, 0.0, 1.0, 1.0])},
    )


def applied(action: str, **options) -> Rollouts:
    done = rollouts()
    Overlong(action, **options).apply(done, LIMIT)
    return done


# --- the penalty -------------------------------------------------------------------------------------------------


def test_the_penalty_grows_over_the_buffer():
    # Nothing up to 100 - 20 = 80, then (80 - length) / 20.
    penalties = {1: 0.0, 79: 0.0, 80: 0.0, 81: -0.05, 85: -0.25, 90: -0.5, 100: -1.0, 120: -1.0}
    computed = soft_overlong_penalty(torch.tensor(list(penalties)), limit=100, buffer=20)
    assert computed.tolist() == pytest.approx(list(penalties.values()))


def test_a_buffer_as_long_as_the_limit_penalizes_every_token():
    # -length / 8
    assert soft_overlong_penalty(torch.tensor([1, 4, 8]), limit=8, buffer=8).tolist() == [-0.125, -0.5, -1.0]


def test_a_buffer_of_less_than_a_token_penalizes_the_limit_alone():
    assert soft_overlong_penalty(torch.tensor([6, 7, 8]), limit=8, buffer=0.4).tolist() == [0.0, 0.0, -1.0]


# --- keep --------------------------------------------------------------------------------------------------------


def test_keeping_changes_nothing():
    done = applied("keep")
    assert done.rewards.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert done.in_loss.tolist() == [True, True, True, True]
    assert list(done.parts) == ["correct"]


def test_completions_are_kept_by_default():
    assert Overlong() == Overlong("keep", 0.0)


# --- mask --------------------------------------------------------------------------------------------------------


def test_masking_leaves_truncated_completions_out_of_the_loss():
    done = applied("mask")
    assert done.in_loss.tolist() == [True, True, True, False]
    assert done.loss_mask.sum(1).tolist() == [3, 4, 6, 0]


def test_masking_leaves_the_rewards_as_they_are():
    done = applied("mask")
    assert done.rewards.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert list(done.parts) == ["correct"]


def test_masking_keeps_out_what_was_left_out_before():
    done = rollouts()
    done.in_loss = torch.tensor([False, True, True, True])
    Overlong("mask").apply(done, LIMIT)
    assert done.in_loss.tolist() == [False, True, True, False]


# --- penalize ----------------------------------------------------------------------------------------------------


def test_penalizing_lowers_rewards_near_the_limit():
    # Half of 8 tokens: nothing up to 4, (4 - 6) / 4 = -0.5, (4 - 8) / 4 = -1
    done = applied("penalize", buffer=0.5)
    assert done.rewards.tolist() == [1.0, 0.0, 0.5, 0.0]


def test_the_penalty_is_a_part_of_the_reward_of_its_own():
    done = applied("penalize", buffer=0.5)
    assert done.parts["overlong"].tolist() == [0.0, 0.0, -0.5, -1.0]
    assert done.parts["correct"].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_penalized_completions_count_in_the_loss():
    assert applied("penalize", buffer=0.5).in_loss.tolist() == [True, True, True, True]


def test_penalized_rewards_stay_in_single_precision():
    done = applied("penalize", buffer=0.2)
    assert done.rewards.dtype == done.parts["overlong"].dtype == torch.float32


def test_the_buffer_is_a_share_of_the_limit():
    # A quarter of 8 is 2 tokens: nothing up to 6, -1 at 8. A quarter of 16: nothing up to 12.
    assert applied("penalize", buffer=0.25).parts["overlong"].tolist() == [0.0, 0.0, 0.0, -1.0]
    done = rollouts()
    Overlong("penalize", 0.25).apply(done, 16)
    assert done.parts["overlong"].tolist() == [0.0, 0.0, 0.0, 0.0]
