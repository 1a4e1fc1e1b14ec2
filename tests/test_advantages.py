"""Group-relative advantages against numbers worked out by hand."""

import pytest
import torch

from lit_rl.advantages import equal_groups, group_advantages

MIXED = [1.0, 0.0, 1.0, 0.0]


def test_half_right_groups_have_advantages_of_0_866():
    # mean 0.5, unbiased std sqrt(4 * 0.25 / 3) = 0.57735, 0.5 / (0.57735 + 0.0001) = 0.86587
    advantages = group_advantages(torch.tensor([MIXED]))
    assert advantages.tolist()[0] == pytest.approx([0.86587, -0.86587, 0.86587, -0.86587], abs=1e-5)


def test_one_right_of_four_gets_three_times_what_the_wrong_ones_lose():
    # mean 0.25, unbiased std sqrt((0.5625 + 3 * 0.0625) / 3) = 0.5, 0.75 / 0.5001 = 1.49970, 0.25 / 0.5001 = 0.49990
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert advantages.tolist()[0] == pytest.approx([1.49970, -0.49990, -0.49990, -0.49990], abs=1e-5)


def test_without_scale_advantages_are_distances_from_the_mean():
    advantages = group_advantages(torch.tensor([MIXED, [3.0, 0.0, 0.0, 1.0]]), "none")
    assert advantages.tolist() == [[0.5, -0.5, 0.5, -0.5], [2.0, -1.0, -1.0, 0.0]]


def test_batch_scale_divides_every_group_by_the_std_of_all_rewards():
    # Rewards 1 0 1 0 and 2 2 2 2: mean 1.25, squares 2 * 0.0625 + 2 * 1.5625 + 4 * 0.5625 = 5.5, std sqrt(5.5 / 7) = 0.88641
    # 0.5 / (0.88641 + 0.0001) = 0.56401
    advantages = group_advantages(torch.tensor([MIXED, [2.0, 2.0, 2.0, 2.0]]), "batch")
    assert advantages[0].tolist() == pytest.approx([0.56401, -0.56401, 0.56401, -0.56401], abs=1e-5)
    assert advantages[1].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_groups_do_not_see_each_other():
    rewards = torch.tensor([MIXED, [5.0, 1.0, 0.0, 2.0]])
    assert torch.equal(group_advantages(rewards)[:1], group_advantages(rewards[:1]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 + 0.2, 0.7, 1 / 3, -1e-8, 1001.1])
@pytest.mark.parametrize("size", [2, 3, 7, 10])
def test_equal_rewards_have_advantages_of_exactly_zero(scale, value, size):
    rewards = torch.full((3, size), value)
    assert group_advantages(rewards, scale).tolist() == [[0.0] * size] * 3


def test_the_mean_of_equal_rewards_really_rounds():
    # Without this the test above would prove nothing.
    rewards = torch.full((1, 7), 0.1)
    assert bool((rewards - rewards.mean(dim=1, keepdim=True)).any())


def test_an_equal_group_beside_an_unequal_one_stays_zero():
    rewards = torch.tensor([[0.1] * 7, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert group_advantages(rewards)[0].tolist() == [0.0] * 7
    assert bool(group_advantages(rewards)[1].all())


def test_advantages_of_a_group_add_up_to_zero():
    rewards = torch.rand(5, 8, dtype=torch.float64)
    assert float(group_advantages(rewards).sum(1).abs().max()) < 1e-12


def test_shifting_and_stretching_rewards_changes_nothing_but_rounding():
    rewards = torch.tensor([MIXED], dtype=torch.float64)
    assert torch.allclose(group_advantages(100 * rewards + 7, eps=0.0), group_advantages(rewards, eps=0.0))


def test_groups_of_equal_rewards_are_found():
    rewards = torch.tensor([[0.3, 0.3], [0.3, 0.30000001], [0.3, 0.4]], dtype=torch.float64)
    assert equal_groups(rewards).tolist() == [True, False, False]
