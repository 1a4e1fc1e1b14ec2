"""Bandits lose far less than draws at random, whatever the scale of the rewards."""

import numpy as np
import pytest

from lit_rl.sampling.bandit import ArmStatistics

CHANCES = np.array([0.3, 0.1, 0.5, 0.8, 0.2, 0.7, 0.4, 0.6])
DRAWS = 2000


def regret(method: str, seed: int, scale: float = 1.0, shift: float = 0.0, draws: int = DRAWS) -> float:
    """Expected rewards that a bandit loses to the best arm, in draws of it, over all draws."""
    statistics, world = ArmStatistics(len(CHANCES)), np.random.default_rng([seed, 1])
    lost = 0.0
    for draw in range(draws):
        [arm] = statistics.choose(method, 1, np.random.default_rng([seed, draw, 2]))
        reward = scale * float(world.random() < CHANCES[arm]) + shift
        lost += CHANCES.max() - CHANCES[arm]
        totals = np.zeros((3, len(CHANCES)))
        totals[:, arm] = 1, reward, reward**2
        statistics.add(totals)
    return lost


@pytest.mark.parametrize("method", ["thompson", "ucb"])
def test_regret_is_below_a_third_of_uniform_draws(method):
    uniform = DRAWS * float((CHANCES.max() - CHANCES).mean())
    assert uniform == pytest.approx(700)  # 2000 times a mean gap of 0.35
    for seed in range(3):
        assert regret(method, seed) < uniform / 3, seed


@pytest.mark.parametrize("method", ["thompson", "ucb"])
def test_the_scale_of_the_rewards_changes_nothing_but_rounding(method):
    scaled = regret(method, 5, scale=64.0, shift=-1024.0, draws=500)
    assert scaled == pytest.approx(regret(method, 5, draws=500), rel=0.05)


def known(*rewards: list[float], decay: float = 1.0) -> ArmStatistics:
    """Statistics of arms that earned the given rewards."""
    statistics = ArmStatistics(len(rewards), decay)
    statistics.add(np.array([[len(each), sum(each), sum(x * x for x in each)] for each in rewards], dtype=float).T)
    return statistics


def test_means_and_the_deviation_of_all_rewards_together():
    statistics = known([1.0, 3.0], [2.0, 2.0, 7.0], [])
    assert statistics.means.tolist() == pytest.approx([2.0, 11 / 3, 0.0])
    assert statistics.deviation == pytest.approx(np.std([1.0, 3.0, 2.0, 2.0, 7.0]))


def test_an_upper_bound_is_mean_plus_width():
    # Means 0.5 and 0.75, deviation of 0 1 0 1 1 1: 0.4714; widths by ln 6: 0.4714 sqrt(2 * 1.7918 / n), 0.631 and 0.446.
    statistics = known([0.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    draws = np.random.default_rng(0)
    assert statistics.choose("ucb", 2, draws) == [1, 0]  # 1.131 and 1.196
    assert statistics.choose("ucb", 2, draws, exploration=2.0) == [0, 1]  # 1.762 and 1.642
    assert statistics.choose("ucb", 1, draws, exploration=0.0) == [1]


def test_arms_without_rewards_come_first_and_in_no_fixed_order():
    for method in ("thompson", "ucb"):
        statistics = known([], [5.0, 6.0], [])
        firsts = {tuple(statistics.choose(method, 2, np.random.default_rng(seed))) for seed in range(20)}
        assert firsts == {(0, 2), (2, 0)}, method


def test_thompson_sampling_draws_an_arm_as_often_as_it_may_be_the_best():
    statistics = known([0.0, 2.0], [1.0, 3.0])
    # Deviation of 0 2 1 3: sqrt(1.25); the difference of the values is N(1, 1.25), above 0 with probability 0.814.
    firsts = [statistics.choose("thompson", 1, np.random.default_rng(seed))[0] for seed in range(2000)]
    assert np.mean(firsts) == pytest.approx(0.814, abs=0.03)  # three deviations of 0.0087


def test_decay_forgets_early_rewards():
    statistics = known([8.0], [0.0], decay=0.5)
    statistics.add(np.array([[1.0, 1.0], [2.0, 4.0], [4.0, 16.0]]))
    assert statistics.totals[0].tolist() == [1.5, 1.5]
    assert statistics.means.tolist() == pytest.approx([4.0, 8 / 3])  # (4 + 2) / 1.5 and 4 / 1.5


def test_a_state_brings_every_bit_back():
    statistics = known([0.1, 0.7], [1 / 3], [])
    again = ArmStatistics(3)
    again.load_state_dict(statistics.state_dict())
    assert (again.totals == statistics.totals).all()
