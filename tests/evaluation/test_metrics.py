"""Intervals, pass@k, majority votes and their sums over batches, against numbers worked out by hand."""

from itertools import combinations, product

import pytest
import torch

from lit_rl.evaluation.metrics import Mean, Proportion, pass_at_k, wilson_interval
from lit_rl.rewards.majority_vote import majority

# --- Wilson interval ---------------------------------------------------------------------------------------------


def test_the_wilson_interval_of_known_cases():
    # (p + zz / 2n) / (1 + zz / n) -+ z / (1 + zz / n) sqrt(p q / n + zz / 4nn), zz = 1.959964 ** 2 = 3.841459
    assert wilson_interval(45, 100) == pytest.approx((0.3561, 0.5476), abs=5e-5)
    # Newcombe 1998, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0000, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((0.8389, 1.0000), abs=5e-5)  # 1 - 0.1611


def test_the_wilson_interval_of_no_trials_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_wilson_interval_holds_the_proportion_and_stays_between_0_and_1():
    for successes, trials in [(0, 1), (1, 1), (1, 3), (0, 50), (25, 50), (50, 50), (0, 10_000), (10_000, 10_000)]:
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials + 1e-12, (successes, trials)
        assert successes / trials - 1e-12 <= high <= 1, (successes, trials)


# --- pass@k and majority -----------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
    for right, k in product(range(7), range(1, 7)):
        draws = list(combinations([True] * right + [False] * (6 - right), k))
        assert pass_at_k(6, right, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws)), (right, k)


def test_pass_at_one_is_the_accuracy():
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


def test_the_majority_is_the_most_frequent_answer_and_the_first_of_several():
    assert majority(["3", "5", "5"]) == "5"
    assert majority(["3", "5"]) == "3"
    assert majority(["5", "3", "3", "5"]) == "5"


def test_completions_without_an_answer_have_no_vote():
    assert majority([None, None, None, "7"]) == "7"
    assert majority([None, None]) is None
    assert majority([]) is None


# --- Proportion and Mean --------------------------------------------------------------------------------------------------


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


def test_a_mean_has_the_interval_of_its_standard_error():
    metric = Mean()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([3.0, 4.0]))
    # mean 2.5, variance 1.6667 with n - 1, standard error sqrt(1.6667 / 4) = 0.645497
    assert metric.compute() == pytest.approx({"mean": 2.5, "low": 2.5 - 1.265151, "high": 2.5 + 1.265151}, abs=1e-5)
