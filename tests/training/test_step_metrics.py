"""Metrics of a rollout and of an optimizer step, against numbers worked out by hand."""

import pytest
import torch
from tiny_rollouts import prompts_of, rollouts_of
from torch import Tensor

from lit_rl.training.step_metrics import StepMetrics, rollout_metrics


def one_rank(values: Tensor) -> Tensor:
    return values


def test_the_metrics_of_a_rollout():
    rollouts = rollouts_of(
        prompts_of([1], [2]),
        2,
        [[4, 5], [4], [4, 5, 6], [4, 5]],
        truncated=torch.tensor([False, False, True, False]),
        entropies=torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.5, 0.5, 1.0], [0.0, 2.0, 0.0]]),
        rewards=torch.tensor([1.0, 0.0, 0.5, 0.5]),
        parts={"format": torch.tensor([1.0, 1.0, 1.0, 0.0])},
    )
    assert rollout_metrics(rollouts, one_rank) == pytest.approx(
        {
            "reward": 0.5,
            "reward_std": 0.408248,  # sqrt(2 * 0.25 / 3)
            "frac_reward_zero_std": 0.5,
            "completions/mean_length": 2.0,
            "completions/min_length": 1.0,
            "completions/max_length": 3.0,
            "completions/clipped_ratio": 0.25,
            "entropy": 1.0,  # 8 nats over 8 tokens
            "rewards/format/mean": 0.75,
        },
        abs=1e-6,
    )


def test_the_kl_of_a_rollout_is_a_mean_over_sampled_tokens():
    logprobs = torch.tensor([[-1.0, -1.0], [-2.0, 0.0]])
    rollouts = rollouts_of(prompts_of([1]), 2, [[4, 5], [4]], logprobs=logprobs, ref_logprobs=logprobs)
    assert rollout_metrics(rollouts, one_rank)["kl"] == 0.0
    rollouts.ref_logprobs = logprobs - torch.tensor([[0.5, 0.0], [0.0, 9.0]])  # 9.0 after the row's end
    # k3 of a ratio exp(-0.5): exp(-0.5) + 0.5 - 1 = 0.106531, over 3 tokens
    assert rollout_metrics(rollouts, one_rank)["kl"] == pytest.approx(0.035510, abs=1e-6)


def test_shares_add_up_over_micro_batches_and_ratios_are_divided_at_the_end():
    metrics = StepMetrics({"reward": 0.5})
    for loss, hits, tokens in [(0.25, 1.0, 4.0), (0.5, 2.0, 2.0)]:
        metrics.add({"loss": torch.tensor(loss)}, {"accuracy": (torch.tensor(hits), torch.tensor(tokens))}, {})
    assert metrics.over_ranks(one_rank, one_rank) == {"reward": 0.5, "loss": 0.75, "accuracy": 0.5}


def test_ranges_reach_over_micro_batches_without_values_too():
    metrics = StepMetrics({})
    for values in ([2.0, 3.0], [], [1.5]):
        metrics.add({"loss": torch.tensor(0.0)}, {}, {"ratio": torch.tensor(values)})
    assert metrics.over_ranks(one_rank, one_rank) == {"loss": 0.0, "ratio/min": 1.5, "ratio/max": 3.0}


def test_sums_and_ranges_are_taken_over_all_ranks():
    metrics = StepMetrics({})
    metrics.add({"loss": torch.tensor(0.25)}, {}, {"ratio": torch.tensor([1.0, 2.0])})
    other = torch.tensor([-0.5, 1.0])  # a smallest value of 0.5 and a largest of 1.0 on the other rank
    values = metrics.over_ranks(lambda total: 2 * total, lambda ends: ends.maximum(other.to(ends)))
    assert values == {"loss": 0.5, "ratio/min": 0.5, "ratio/max": 2.0}


def test_each_arm_has_its_share_of_the_rows_and_the_mean_of_their_rewards():
    rollouts = rollouts_of(
        prompts_of([1], [2]),
        2,
        [[4]] * 4,
        rewards=torch.tensor([1.0, 0.0, 0.5, 0.0]),
        scored=torch.tensor([True, True, True, False]),
        arm=torch.tensor([0, 2, 0, 2]),
    )
    metrics = rollout_metrics(rollouts, one_rank, ["a", "b", "c"])
    assert {name: value for name, value in metrics.items() if name.startswith("arms/")} == {
        "arms/a/share": 0.5,
        "arms/a/reward": 0.75,
        "arms/b/share": 0.0,
        "arms/c/share": 0.5,
        "arms/c/reward": 0.0,
    }
    assert not any(name.startswith("arms/") for name in rollout_metrics(rollouts, one_rank))
