"""Logged against numbers worked out by hand and against counting every case."""

from itertools import combinations

import pytest
import torch

from lit_rl.training.step_metrics import rollout_metrics
from lit_rl.evaluation.metrics import Proportion, majority, pass_at_k, wilson_interval
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample

# --- Wilson interval ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # (p + zz / 2n) / (1 + zz / n) -+ z / (1 + zz / n) sqrt(p q / n + zz / 4nn), zz = 1.959964 ** 2 = 3.841459
        (45, 100, 0.3561, 0.5476),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),  # the same
        (0, 20, 0.0000, 0.1611),  # the same
        (1, 29, 0.0061, 0.1718),  # the same
        (20, 20, 0.8389, 1.0000),  # 1 - 0.1611
    ],
)
def test_the_wilson_interval_of_known_cases(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_wilson_interval_of_no_trials_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("trials", [1, 3, 50, 10_000])
def test_the_wilson_interval_holds_the_proportion_and_stays_between_0_and_1(trials):
    for successes in {0, 1, trials // 2, trials}:
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials + 1e-12
        assert successes / trials - 1e-12 <= high <= 1


# --- pass@k and majority -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(right, k):
    draws = list(combinations([True] * right + [False] * (6 - right), k))
    assert pass_at_k(6, right, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_one_is_the_accuracy():
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["3", "5", "5"], "5"),
        (["3", "5"], "3"),
        (["5", "3", "3", "5"], "5"),
        ([None, None, None, "7"], "7"),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_is_the_most_frequent_answer_and_the_first_of_several(answers, winner):
    assert majority(answers) == winner


# --- Proportion --------------------------------------------------------------------------------------------------


def test_a_proportion_counts_over_batches():
    metric = Proportion()
    metric.update(torch.tensor([True, False, True]))
    metric.update(torch.tensor([0.0, 1.0]))
    # 3 of 5: center (0.6 + 0.384146) / 1.768292 = 0.556551, half 1.108392 * sqrt(0.048 + 0.038415) = 0.325826
    assert metric.compute() == pytest.approx({"mean": 0.6, "low": 0.230725, "high": 0.882377, "count": 5}, abs=1e-5)


def test_a_proportion_of_nothing_is_unknown():
    metric = Proportion()
    metric.update(torch.tensor([]))
    assert metric.compute() == {"mean": 0.0, "low": 0.0, "high": 1.0, "count": 0.0}


def test_a_proportion_starts_again_after_a_reset():
    metric = Proportion()
    metric.update(torch.ones(4))
    metric.reset()
    metric.update(torch.zeros(2))
    assert metric.compute()["mean"] == 0.0


def test_a_proportion_counts_exactly_past_the_integers_of_float32():
    metric = Proportion()
    metric.total += 2**24
    metric.count += 2**24
    metric.update(torch.ones(1))
    assert int(metric.total) == 2**24 + 1
    assert metric.compute()["mean"] == 1.0


# --- figures of a rollout ----------------------------------------------------------------------------------------


def test_the_figures_of_a_rollout():
    prompts = PromptBatch.pad([[1], [2]], [[], []], [Sample("", "", "", n) for n in range(2)], 0)
    lengths = torch.tensor([2, 1, 3, 2])
    entropies = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.5, 0.5, 1.0], [0.0, 2.0, 0.0]])
    rollouts = Rollouts(
        prompts,
        2,
        torch.zeros(4, 3).long(),
        lengths,
        torch.tensor([False, False, True, False]),
        torch.zeros(4, 3),
        entropies,
        torch.ones(4),
        rewards=torch.tensor([1.0, 0.0, 0.5, 0.5]),
        parts={"format": torch.tensor([1.0, 1.0, 1.0, 0.0])},
    )
    assert rollout_metrics(rollouts, lambda values: values) == pytest.approx(
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
