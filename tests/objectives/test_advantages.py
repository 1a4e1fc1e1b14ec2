"""Advantages against numbers worked out by hand: groups, returns of tokens, the whole batch, a critic."""

from itertools import product

import pytest
import torch

from lit_rl.objectives.advantages import (
    equal_groups,
    generalized_advantages,
    group_advantages,
    reward_to_go,
    token_rewards,
    whiten,
)

MIXED = [1.0, 0.0, 1.0, 0.0]
SCALES = ["group", "batch", "none"]


def alone(values):
    """Sum over ranks, and values of all ranks, if there is one."""
    return values


# --- groups ------------------------------------------------------------------------------------------------------


def test_half_right_groups_have_advantages_of_0_866():
    # mean 0.5, unbiased std sqrt(4 * 0.25 / 3) = 0.57735, 0.5 / (0.57735 + 0.0001) = 0.86587
    advantages = group_advantages(torch.tensor([MIXED]))
    assert advantages.tolist()[0] == pytest.approx([0.86587, -0.86587, 0.86587, -0.86587], abs=1e-5)


def test_one_right_of_four_gets_three_times_what_the_wrong_ones_lose():
    # mean 0.25, unbiased std sqrt((0.5625 + 3 * 0.0625) / 3) = 0.5, 0.75 / 0.5001 = 1.49970, 0.25 / 0.5001 = 0.49990
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert advantages.tolist()[0] == pytest.approx([1.49970, -0.49990, -0.49990, -0.49990], abs=1e-5)


@pytest.mark.parametrize(
    ("baseline", "scale", "right", "wrong", "equal"),
    [
        # Two groups, 1 0 1 0 and 2 2 2 2. To each divisor 0.0001 is added.
        # The groups' own: means 0.5 and 2, the first one's std sqrt(4 * 0.25 / 3) = 0.57735.
        # All eight rewards: mean 1.25, squares 2 * 0.0625 + 2 * 1.5625 + 4 * 0.5625 = 5.5, std sqrt(5.5 / 7) = 0.88641.
        ("group", "none", 0.5, -0.5, 0.0),
        ("group", "group", 0.86587, -0.86587, 0.0),  # 0.5 / 0.57745
        ("group", "batch", 0.56401, -0.56401, 0.0),  # 0.5 / 0.88651
        # The others of a 1 have mean 1/3, those of a 0 have 2/3.
        ("leave_one_out", "none", 0.66667, -0.66667, 0.0),
        ("leave_one_out", "group", 1.15450, -1.15450, 0.0),  # 0.66667 / 0.57745
        ("leave_one_out", "batch", 0.75202, -0.75202, 0.0),  # 0.66667 / 0.88651
        # 1 0 1 0 0: mean 0.4, std sqrt((2 * 0.36 + 3 * 0.16) / 4) = 0.54772.
        # 2 2 2 2 0: mean 1.6, std sqrt((4 * 0.16 + 2.56) / 4) = 0.89443.
        ("phantom_zero", "none", 0.6, -0.4, 0.4),
        ("phantom_zero", "group", 1.09525, -0.73016, 0.44716),  # 0.6 / 0.54782, -0.4 / 0.54782, 0.4 / 0.89453
        ("phantom_zero", "batch", 0.67681, -0.45121, 0.45121),  # 0.6 / 0.88651, -0.4 / 0.88651, 0.4 / 0.88651
    ],
)
def test_every_baseline_goes_with_every_scale(baseline, scale, right, wrong, equal):
    advantages = group_advantages(torch.tensor([MIXED, [2.0, 2.0, 2.0, 2.0]]), baseline, scale)
    assert advantages[0].tolist() == pytest.approx([right, wrong, right, wrong], abs=1e-5)
    assert advantages[1].tolist() == pytest.approx([equal] * 4, abs=1e-5)


def test_without_scale_advantages_are_distances_from_the_mean():
    advantages = group_advantages(torch.tensor([MIXED, [3.0, 0.0, 0.0, 1.0]]), scale="none")
    assert advantages.tolist() == [[0.5, -0.5, 0.5, -0.5], [2.0, -1.0, -1.0, 0.0]]


def test_groups_do_not_see_each_other():
    rewards = torch.tensor([MIXED, [5.0, 1.0, 0.0, 2.0]])
    for options in product(["group", "leave_one_out", "phantom_zero"], ["group", "none"]):
        together, apart = group_advantages(rewards, *options)[:1], group_advantages(rewards[:1], *options)
        assert torch.equal(together, apart), options


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    # 4 against (1 + 0 + 1) / 3, 1 against (4 + 0 + 1) / 3, 0 against (4 + 1 + 1) / 3
    advantages = group_advantages(torch.tensor([[4.0, 1.0, 0.0, 1.0]]), "leave_one_out", "none")
    assert advantages.tolist()[0] == pytest.approx([10 / 3, -2 / 3, -2.0, -2 / 3])
    # 4 against 1, and 1 against 4
    assert group_advantages(torch.tensor([[4.0, 1.0]]), "leave_one_out", "none").tolist() == [[3.0, -3.0]]


def test_a_phantom_zero_leaves_an_advantage_to_a_group_that_is_all_right():
    # 1 1 1 and the phantom 0: mean 0.75, unbiased std sqrt((3 * 0.0625 + 0.5625) / 3) = 0.5, 0.25 / 0.5001 = 0.49990
    advantages = group_advantages(torch.ones(1, 3), "phantom_zero")
    assert advantages.tolist()[0] == pytest.approx([0.49990] * 3, abs=1e-5)


def test_a_phantom_zero_gives_nothing_to_a_group_that_is_all_wrong():
    for scale in SCALES:
        assert group_advantages(torch.zeros(2, 5), "phantom_zero", scale).tolist() == [[0.0] * 5] * 2, scale


def test_equal_rewards_have_advantages_of_exactly_zero():
    values, sizes = [0.0, 1.0, 0.1 + 0.2, 0.7, 1 / 3, -1e-8, 1001.1], [2, 3, 7, 10]
    for baseline, scale, value, size in product(["group", "leave_one_out"], SCALES, values, sizes):
        advantages = group_advantages(torch.full((3, size), value), baseline, scale)
        assert advantages.tolist() == [[0.0] * size] * 3, (baseline, scale, value, size)


def test_a_group_of_one_has_an_advantage_of_zero_unless_there_is_a_phantom():
    for baseline, scale in product(["group", "leave_one_out"], SCALES):
        assert group_advantages(torch.tensor([[5.0], [1.0]]), baseline, scale).tolist() == [[0.0], [0.0]], (baseline, scale)
    # 5 and the phantom 0: mean 2.5
    assert group_advantages(torch.tensor([[5.0], [0.0]]), "phantom_zero", "none").tolist() == [[2.5], [0.0]]


def test_the_mean_of_equal_rewards_really_rounds():
    # Without this the test above would prove nothing.
    rewards = torch.full((1, 7), 0.1)
    assert bool((rewards - rewards.mean(dim=1, keepdim=True)).any())


def test_an_equal_group_beside_an_unequal_one_stays_zero():
    rewards = torch.tensor([[0.1] * 7, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    for baseline in ("group", "leave_one_out"):
        advantages = group_advantages(rewards, baseline)
        assert advantages[0].tolist() == [0.0] * 7, baseline
        assert bool(advantages[1].all()), baseline


def test_shifting_and_stretching_rewards_changes_nothing_but_rounding():
    rewards = torch.tensor([MIXED], dtype=torch.float64)
    assert torch.allclose(group_advantages(100 * rewards + 7, eps=0.0), group_advantages(rewards, eps=0.0))


def test_groups_of_equal_rewards_are_found():
    rewards = torch.tensor([[0.3, 0.3], [0.3, 0.30000001], [0.3, 0.4]], dtype=torch.float64)
    assert equal_groups(rewards).tolist() == [True, False, False]


# --- returns of tokens -------------------------------------------------------------------------------------------


def test_a_token_earns_the_reward_less_the_penalties_from_it_on():
    # 1 - (0.1 + 0.2 + 0.3), 1 - (0.2 + 0.3), 1 - 0.3
    returns = reward_to_go(torch.tensor([1.0]), torch.tensor([[0.1, 0.2, 0.3]]), torch.ones(1, 3).bool())
    assert returns.tolist()[0] == pytest.approx([0.4, 0.5, 0.7])


def test_returns_step_over_tokens_that_were_not_sampled():
    # 1 - (0.1 + 0.3), others' token, 1 - 0.3
    returns = reward_to_go(torch.tensor([1.0]), torch.tensor([[0.1, 9.0, 0.3]]), torch.tensor([[1, 0, 1]]).bool())
    assert returns.tolist()[0] == pytest.approx([0.6, 0.0, 0.7])


def test_penalties_after_a_rows_end_cost_nothing():
    # 2 - 0.5, and an empty row
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]]).bool()
    returns = reward_to_go(torch.tensor([2.0, 1.0]), torch.tensor([[0.5, 9.0, 9.0], [9.0, 9.0, 9.0]]), mask)
    assert returns.tolist() == [[1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]


# --- rewards of tokens -------------------------------------------------------------------------------------------


def test_the_reward_is_paid_at_the_last_sampled_token_and_the_penalty_at_each():
    # Rows of three tokens, of one, with others' tokens in the middle, at the end and everywhere.
    sampled = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]]).bool()
    rewards, penalties = torch.tensor([1.0, 0.5, 2.0, 3.0, 4.0]), torch.tensor([[0.1, 0.2, 0.3]]).repeat(5, 1)
    earned = token_rewards(rewards, penalties, sampled)
    expected = [[-0.1, -0.2, 0.7], [0.4, 0.0, 0.0], [-0.1, 0.0, 1.7], [-0.1, 2.8, 0.0], [4.0, 0.0, 0.0]]
    assert earned.flatten().tolist() == pytest.approx([value for row in expected for value in row])


# --- the whole batch ---------------------------------------------------------------------------------------------

BATCH = torch.tensor([[1.0, 2.0, 3.0], [6.0, 70.0, -80.0]])
FOUR = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()


def test_whitened_tokens_are_distances_from_their_mean_in_stds():
    # Tokens 1 2 3 6: mean 3, squares 4 + 1 + 0 + 9 = 14, std sqrt(14 / 3) = 2.160247
    # -2 / 2.160247 = -0.925820, -1 / 2.160247 = -0.462910, 3 / 2.160247 = 1.388730
    whitened = whiten(BATCH, FOUR, alone)
    assert whitened[0].tolist() == pytest.approx([-0.925820, -0.462910, 0.0], abs=1e-6)
    assert whitened[1].tolist() == [pytest.approx(1.388730, abs=1e-6), 0.0, 0.0]


def test_without_scale_whitening_subtracts_the_mean():
    assert whiten(BATCH, FOUR, alone, scale=False).tolist() == [[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]


def test_eps_is_added_to_the_std():
    # -2 / (2.160247 + 1) = -0.632862
    assert float(whiten(BATCH, FOUR, alone, eps=1.0)[0, 0]) == pytest.approx(-0.632862, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "of_the_other", "expected"),
    [
        # Tokens 1 2 3 here and 6 there: sum and count, then the squares of the distances from 3.
        (0, [[6.0, 1.0], [9.0]], [-0.925820, -0.462910, 0.0]),
        (1, [[6.0, 3.0], [5.0]], [1.388730, 0.0, 0.0]),
    ],
)
def test_every_rank_whitens_by_the_tokens_of_all(row, of_the_other, expected):
    numbers = iter(of_the_other)

    def total(values):
        return values + torch.tensor(next(numbers), dtype=values.dtype)

    assert whiten(BATCH[[row]], FOUR[[row]], total)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_one_token_is_its_own_mean():
    mask = torch.tensor([[0, 1]]).bool()
    assert whiten(torch.tensor([[7.0, 5.0]]), mask, alone).tolist() == [[0.0, 0.0]]


def test_a_batch_without_tokens_has_finite_zeros():
    for scale in (True, False):
        assert whiten(BATCH, torch.zeros(2, 3).bool(), alone, scale).tolist() == [[0.0] * 3] * 2, scale


def test_equal_tokens_have_advantages_of_zero():
    assert whiten(torch.full((2, 3), 0.5), FOUR, alone).tolist() == [[0.0] * 3] * 2


def test_whitened_values_keep_their_type():
    assert whiten(BATCH, FOUR, alone).dtype == torch.float32


# --- a critic ----------------------------------------------------------------------------------------------------

THREE = torch.ones(1, 3).bool()


def generalized(rewards, values, last, mask=THREE, gamma=1.0, lam=1.0):
    tensors = [torch.tensor(numbers, dtype=torch.float64) for numbers in (rewards, values, last)]
    return generalized_advantages(*tensors, mask, gamma, lam)


@pytest.mark.parametrize(
    ("last", "gamma", "lam", "expected"),
    [
        # Reward 1 at the third token, values 0.5 0.6 0.7. The distances delta_t = r_t + gamma V_{t+1} - V_t:
        # ended, gamma 1: 0.6 - 0.5 = 0.1, 0.7 - 0.6 = 0.1, 1 - 0.7 = 0.3
        (0.0, 1.0, 0.0, [0.1, 0.1, 0.3]),
        (0.0, 1.0, 0.5, [0.225, 0.25, 0.3]),  # 0.1 + 0.5 * 0.3 = 0.25, 0.1 + 0.5 * 0.25 = 0.225
        (0.0, 1.0, 1.0, [0.5, 0.4, 0.3]),  # 1 - V_t
        # cut off where 0.8 was expected, gamma 1: 0.1, 0.1, 1 + 0.8 - 0.7 = 1.1
        (0.8, 1.0, 0.0, [0.1, 0.1, 1.1]),
        (0.8, 1.0, 0.5, [0.425, 0.65, 1.1]),  # 0.1 + 0.5 * 1.1 = 0.65, 0.1 + 0.5 * 0.65 = 0.425
        (0.8, 1.0, 1.0, [1.3, 1.2, 1.1]),  # 1.8 - V_t
        # ended, gamma 0.9: 0.54 - 0.5 = 0.04, 0.63 - 0.6 = 0.03, 0.3
        (0.0, 0.9, 0.0, [0.04, 0.03, 0.3]),
        (0.0, 0.9, 0.5, [0.11425, 0.165, 0.3]),  # 0.03 + 0.45 * 0.3 = 0.165, 0.04 + 0.45 * 0.165 = 0.11425
        (0.0, 0.9, 1.0, [0.31, 0.3, 0.3]),  # 0.81 - 0.5, 0.9 - 0.6, 1 - 0.7
        # cut off, gamma 0.9: 0.04, 0.03, 1 + 0.72 - 0.7 = 1.02
        (0.8, 0.9, 0.5, [0.26005, 0.489, 1.02]),  # 0.03 + 0.45 * 1.02 = 0.489, 0.04 + 0.45 * 0.489 = 0.26005
    ],
)
def test_generalized_advantages_of_three_tokens(last, gamma, lam, expected):
    advantages = generalized([[0.0, 0.0, 1.0]], [[0.5, 0.6, 0.7]], [last], gamma=gamma, lam=lam)
    assert advantages.tolist()[0] == pytest.approx(expected)


def test_undiscounted_advantages_that_trust_rewards_are_reward_to_go_minus_value():
    # Rewards 1 -2 3: from each token on 2, 1 and 3
    advantages = generalized([[1.0, -2.0, 3.0]], [[0.5, 0.6, 0.7]], [0.0])
    assert advantages.tolist()[0] == pytest.approx([1.5, 0.4, 2.3])


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (0.0, [0.85, 1.6, 0.0]),  # 2 - 0.4 = 1.6, 0.4 - 0.35 + 0.5 * 1.6 = 0.85
        (0.5, [1.1, 2.1, 0.0]),  # 2 + 0.5 - 0.4 = 2.1, 0.05 + 0.5 * 2.1 = 1.1
    ],
)
def test_a_shorter_row_ends_at_its_own_last_token(last, expected):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    rewards, values = [[0.0, 0.0, 1.0], [0.0, 2.0, 9.0]], [[0.5, 0.6, 0.7], [0.35, 0.4, 9.0]]
    advantages = generalized(rewards, values, [0.0, last], mask, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0.225, 0.25, 0.3])
    assert advantages[1].tolist() == pytest.approx(expected)


def test_the_recursion_steps_over_tokens_that_were_not_sampled():
    # Tokens 1 and 3 of the first row, 1 and 2 of the second, whose others' token stands at the end. Values 0.5 and 0.7:
    # 1 - 0.7 = 0.3, 0.7 - 0.5 + 0.5 * 0.3 = 0.35; cut off where 0.8 is expected: 1 + 0.8 - 0.7 = 1.1, 0.2 + 0.5 * 1.1 = 0.75
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()
    rewards, values = [[0.0, 9.0, 1.0], [0.0, 1.0, 9.0]], [[0.5, 9.0, 0.7], [0.5, 0.7, 9.0]]
    advantages = generalized(rewards, values, [0.0, 0.8], mask, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0.35, 0.0, 0.3])
    assert advantages[1].tolist() == pytest.approx([0.75, 1.1, 0.0])


def test_an_empty_row_has_advantages_of_zero():
    advantages = generalized([[9.0] * 3], [[8.0] * 3], [7.0], torch.zeros(1, 3).bool(), lam=0.5)
    assert advantages.tolist() == [[0.0] * 3]
