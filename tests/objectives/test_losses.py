"""Ratios, surrogates and their corrections, each token against numbers worked out by hand."""

import math
from itertools import product

import pytest
import torch

from lit_rl.objectives.losses import (
    cispo_loss,
    clipped_surrogate,
    importance_weights,
    off_policy_mask,
    reinforce_loss,
    sapo_loss,
    sequence_ratio,
    token_ratio,
)

RAGGED = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
MIDDLE = torch.tensor([[1, 0, 1]]).bool()
"""Others wrote the token in the middle."""


def logs(*rows):
    """Logarithms of the numbers, in float64."""
    return torch.tensor(rows, dtype=torch.float64).log()


def value_and_slope(loss, at):
    """A loss at one number, and its derivative there."""
    x = torch.tensor([[at]], dtype=torch.float64, requires_grad=True)
    value = loss(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return float(value.detach()), float(slope)


def advantage_of(value):
    return torch.tensor([[value]], dtype=torch.float64)


# --- ratios ------------------------------------------------------------------------------------------------------


def test_the_ratio_of_a_token_is_its_probability_now_over_then():
    # 0.3 / 0.2, 0.1 / 0.4, 0.5 / 0.5
    ratio = token_ratio(logs([0.3, 0.1, 0.5]), logs([0.2, 0.4, 0.5]))
    assert ratio.tolist()[0] == pytest.approx([1.5, 0.25, 1.0])


def test_equal_log_probabilities_have_a_ratio_of_exactly_one():
    logprobs = torch.tensor([[-0.1, -3.7, -41.3]])
    assert token_ratio(logprobs, logprobs).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(("difference", "ratio"), [(19.0, 178482300.963), (300.0, 485165195.410), (-300.0, 2.061153622e-09)])
def test_log_ratios_are_cut_at_twenty(difference, ratio):
    # e^19 = 178482300.963, e^20 = 485165195.410, e^-20 = 2.061153622e-09
    value = token_ratio(torch.tensor([[difference]]).double(), torch.zeros(1, 1).double())
    assert float(value) == pytest.approx(ratio)


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    # sqrt(2 * 8) = 4; the second row's only token has 0.25
    ratio = sequence_ratio(logs([2.0, 8.0, 1.0], [0.25, 1.0, 1.0]), torch.zeros(2, 3).double(), RAGGED)
    assert ratio[:, 0].tolist() == pytest.approx([4.0, 0.25])


def test_the_ratio_of_a_sequence_leaves_out_tokens_that_were_not_sampled():
    ratio = sequence_ratio(logs([2.0, 8.0, 1000.0], [0.25, 1000.0, 1000.0]), torch.zeros(2, 3).double(), RAGGED)
    assert ratio[:, 0].tolist() == pytest.approx([4.0, 0.25])
    # sqrt(2 * 8) = 4, and no gradient in the middle
    logprobs = logs([2.0, 1000.0, 8.0]).requires_grad_()
    ratio = sequence_ratio(logprobs, torch.zeros(1, 3).double(), MIDDLE)
    (ratio * MIDDLE).sum().backward()
    assert ratio.tolist()[0] == pytest.approx([4.0, 4.0, 4.0])
    assert logprobs.grad.tolist() == [pytest.approx([4.0, 0.0, 4.0])]


def test_the_ratio_of_a_sequence_is_the_same_at_all_its_tokens():
    logprobs = torch.tensor([[-0.1, -3.7, -41.3], [-2.3, -0.7, -1.1]])
    ratio = sequence_ratio(logprobs, logprobs + torch.tensor([0.3, -0.1, 7.0]), RAGGED)
    assert torch.equal(ratio, ratio[:, :1].expand(2, 3))


def test_a_sequence_of_equal_log_probabilities_has_a_ratio_of_exactly_one():
    logprobs = torch.tensor([[-0.1, -3.7, -41.3], [-2.3, -0.7, -1.1]])
    assert sequence_ratio(logprobs, logprobs, RAGGED).tolist() == [[1.0] * 3] * 2


def test_the_gradient_of_a_sequences_ratio_at_each_token_is_the_ratio():
    logprobs = logs([2.0, 8.0, 1.0], [0.25, 1.0, 1.0]).requires_grad_()
    (sequence_ratio(logprobs, torch.zeros(2, 3).double(), RAGGED) * RAGGED).sum().backward()
    assert logprobs.grad.tolist() == [pytest.approx([4.0, 4.0, 0.0]), pytest.approx([0.25, 0.0, 0.0])]


def test_the_mean_over_tokens_has_the_gradient_of_the_geometric_mean():
    # d/dx sqrt(e^x e^y) = sqrt(e^x e^y) / 2 = 2
    logprobs = logs([2.0, 8.0]).requires_grad_()
    sequence_ratio(logprobs, torch.zeros(1, 2).double(), torch.ones(1, 2).bool()).mean().backward()
    assert logprobs.grad.tolist() == [pytest.approx([2.0, 2.0])]


def test_a_sequence_without_tokens_has_a_ratio_of_one():
    ratio = sequence_ratio(logs([5.0, 7.0]), torch.zeros(1, 2).double(), torch.zeros(1, 2).bool())
    assert ratio.tolist() == [pytest.approx([1.0, 1.0])]


@pytest.mark.parametrize(("difference", "ratio"), [(90.0, 485165195.410), (-90.0, 2.061153622e-09)])
def test_the_log_ratio_of_a_sequence_is_cut_at_twenty(difference, ratio):
    logprobs = torch.full((1, 2), difference, dtype=torch.float64)
    value = sequence_ratio(logprobs, torch.zeros(1, 2).double(), torch.ones(1, 2).bool())
    assert value.tolist()[0] == pytest.approx([ratio, ratio])


# --- clipped surrogate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        # Inside the bounds 0.8 and 1.3 the loss is -r A.
        (1.25, 2.0, -2.5, -2.0),
        (1.25, -2.0, 2.5, 2.0),
        (0.875, 2.0, -1.75, -2.0),
        (0.875, -2.0, 1.75, 2.0),
        # Above: more of a good token earns nothing, more of a bad one still costs.
        (1.5, 2.0, -2.6, 0.0),
        (1.5, -2.0, 3.0, 2.0),
        # Below: less of a bad token earns nothing, less of a good one still costs.
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 2.0, -1.0, -2.0),
        (7.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_stops_where_a_step_would_overshoot(ratio, advantage, loss, slope):
    got = value_and_slope(lambda r: clipped_surrogate(r, advantage_of(advantage), clip_low=0.2, clip_high=0.3), ratio)
    assert got == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # A bad token's loss stops growing where the ratio reaches 3: 3 * 2 = 6.
        (2.875, -2.0, 5.75, 2.0),
        (4.0, -2.0, 6.0, 0.0),
        (4e8, -2.0, 6.0, 0.0),
        # Everywhere else it is as without.
        (1.0, -2.0, 2.0, 2.0),
        (1.5, -2.0, 3.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),
        (4.0, 2.0, -2.6, 0.0),
        (1.25, 2.0, -2.5, -2.0),
        (0.5, 2.0, -1.0, -2.0),
        (4.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_dual_clip_bounds_the_loss_of_a_bad_token(ratio, advantage, loss, slope):
    got = value_and_slope(lambda r: clipped_surrogate(r, advantage_of(advantage), 0.2, 0.3, dual_clip=3.0), ratio)
    assert got == pytest.approx((loss, slope))


def test_without_dual_clip_the_loss_of_a_bad_token_grows_on():
    got = value_and_slope(lambda r: clipped_surrogate(r, advantage_of(-2.0), 0.2, 0.3), 400.0)
    assert got == pytest.approx((800.0, 2.0))


def test_one_advantage_serves_a_whole_row():
    ratio = torch.tensor([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]])
    losses = clipped_surrogate(ratio, torch.tensor([[1.0], [-1.0]]), 0.2, 0.2)
    assert losses.tolist() == [pytest.approx([-1.0, -1.2, -0.5]), pytest.approx([1.0, 1.5, 0.8])]


def test_tokens_of_a_row_may_have_advantages_of_their_own():
    losses = clipped_surrogate(torch.tensor([[1.5, 1.5, 0.5]]), torch.tensor([[1.0, -1.0, -2.0]]), 0.2, 0.2)
    assert losses.tolist()[0] == pytest.approx([-1.2, 1.5, 1.6])


# --- clipped weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(1.1, 2.0, 1.1), (1.5, 2.0, 1.3), (0.5, 2.0, 0.8), (1.1, -2.0, 1.1), (1.5, -2.0, 1.3), (0.5, -2.0, 0.8)],
)
def test_cispo_weighs_every_token_by_its_clipped_ratio_and_keeps_its_gradient(ratio, advantage, weight):
    # Probability 0.2 of the old policy, bounds 0.8 and 1.3: the loss is -w A log p, its slope -w A.
    old = math.log(0.2)
    now = old + math.log(ratio)

    def loss(logprobs):
        r = token_ratio(logprobs, torch.full_like(logprobs, old))
        return cispo_loss(r, logprobs, advantage_of(advantage), clip_low=0.2, clip_high=0.3)

    assert value_and_slope(loss, now) == pytest.approx((-weight * advantage * now, -weight * advantage))


def test_the_weight_of_cispo_has_no_gradient():
    ratio = torch.tensor([[1.1]], requires_grad=True)
    logprobs = torch.tensor([[-0.5]], requires_grad=True)
    cispo_loss(ratio, logprobs, torch.tensor([[2.0]]), 0.2, 0.3).sum().backward()
    assert ratio.grad is None
    assert float(logprobs.grad) == pytest.approx(-2.2)


@pytest.mark.parametrize("clip_low", [1.0, 5.0])
def test_cispo_has_no_lower_bound_from_one_on(clip_low):
    # -0.01 * 2 * -0.5
    loss = cispo_loss(torch.tensor([[0.01]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]), clip_low, 4.0)
    assert float(loss) == pytest.approx(0.01)


# --- soft gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Temperatures 1 where A > 0 and 2 where A < 0. At ratio 1 the loss is -4 / tau * 0.5 * A = -2 A / tau.
        (1.0, 2.0, -4.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        # sigmoid(0.5) = 0.6224593 and sigmoid(-0.5) = 0.3775407: -4 * 2 times each; slope -4 * 2 * 0.6224593 * 0.3775407
        (1.5, 2.0, -4.9796747, -1.8800297),
        (0.5, 2.0, -3.0203253, -1.8800297),
        # sigmoid(1) = 0.7310586 and sigmoid(-1) = 0.2689414: 4 / 2 * 2 times each; slope 4 * 2 * 0.7310586 * 0.2689414
        (1.5, -2.0, 2.9242343, 1.5728955),
        (0.5, -2.0, 1.0757657, 1.5728955),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_soft_gate_flattens_on_both_sides(ratio, advantage, loss, slope):
    got = value_and_slope(lambda r: sapo_loss(r, advantage_of(advantage), positive=1.0, negative=2.0), ratio)
    assert got == pytest.approx((loss, slope), abs=1e-6)


def test_the_soft_gate_at_ratio_one_has_the_slope_of_the_policy_gradient():
    for tau, advantage in product([0.3, 1.0, 1.05, 7.0], [1.5, -0.5]):
        value, slope = value_and_slope(lambda r: sapo_loss(r, advantage_of(advantage), tau, tau), 1.0)  # noqa: B023
        assert value == pytest.approx(-2 * advantage / tau), (tau, advantage)
        assert slope == pytest.approx(-advantage), (tau, advantage)


def test_the_soft_gate_is_finite_at_the_largest_ratio():
    # -4 * 1 * 2 and slope 0
    assert value_and_slope(lambda r: sapo_loss(r, advantage_of(2.0), 1.0, 1.05), math.exp(20)) == (-8.0, 0.0)


# --- plain policy gradient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("advantage", "loss"), [(2.0, 1.0), (-2.0, -1.0), (0.0, 0.0)])
def test_reinforce_is_the_log_probability_times_minus_the_advantage(advantage, loss):
    assert value_and_slope(lambda x: reinforce_loss(x, advantage_of(advantage)), -0.5) == pytest.approx((loss, -advantage))


# --- completions that the policy moved away from -----------------------------------------------------------------

# The policy fell by 0.3 and 0.1 nats: 0.2 a token.
FELL = torch.tensor([[-1.3, -2.1]])
SAMPLED = torch.tensor([[-1.0, -2.0]])
WHOLE = torch.ones(1, 2).bool()


def test_a_bad_completion_is_left_out_beyond_the_threshold():
    assert off_policy_mask(FELL, SAMPLED, WHOLE, torch.tensor([[-1.0]]), threshold=0.25).tolist() == [[True]]
    assert off_policy_mask(FELL, SAMPLED, WHOLE, torch.tensor([[-1.0]]), threshold=0.15).tolist() == [[False]]


def test_a_bad_completion_at_the_threshold_stays():
    assert off_policy_mask(torch.tensor([[-1.5]]), torch.tensor([[-1.0]]), WHOLE[:, :1], torch.tensor([[-1.0]]), 0.5).all()


def test_a_completion_that_is_not_bad_is_never_left_out():
    for advantage in (1.0, 0.0):
        assert off_policy_mask(FELL, SAMPLED, WHOLE, torch.tensor([[advantage]]), 0.01).tolist() == [[True]], advantage


def test_a_bad_completion_that_became_more_likely_stays():
    assert off_policy_mask(SAMPLED, FELL, WHOLE, torch.tensor([[-1.0]]), 0.01).tolist() == [[True]]


@pytest.mark.parametrize(("threshold", "kept"), [(0.25, True), (0.15, False)])
def test_the_drift_is_a_mean_over_sampled_tokens_only(threshold, kept):
    # In the place of the token that was not sampled, at the end or in the middle, stand 50 nats in either direction.
    other = 50.0 if kept else -50.0
    logprobs, sampled = torch.tensor([[-1.3, -2.1, -other]]), torch.tensor([[-1.0, -2.0, 0.0]])
    mask, middle = torch.tensor([[1, 1, 0]]).bool(), [0, 2, 1]
    assert off_policy_mask(logprobs, sampled, mask, torch.tensor([[-1.0]]), threshold).tolist() == [[kept]]
    turned = [values[:, middle] for values in (logprobs, sampled, mask)]
    assert off_policy_mask(*turned, torch.tensor([[-1.0]]), threshold).tolist() == [[kept]]


def test_only_the_bad_tokens_are_left_out_where_tokens_have_advantages():
    assert off_policy_mask(FELL, SAMPLED, WHOLE, torch.tensor([[-1.0, 1.0]]), 0.15).tolist() == [[False, True]]


def test_a_completion_without_tokens_stays():
    assert off_policy_mask(FELL, SAMPLED, ~WHOLE, torch.tensor([[-1.0]]), 0.15).tolist() == [[True]]


# --- weights between sampler and learner -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "method", "expected"),
    [
        # p_learner / p_sampler is 4, 0.5, 1 in the first row and 0.125 in the second, which has one token. From 0.25 to 3:
        ("token", "truncate", [[3.0, 0.5, 1.0], [0.25, 1.0, 1.0]]),
        ("token", "mask", [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]]),
        # The products are 2 and 0.125.
        ("sequence", "truncate", [[2.0, 2.0, 2.0], [0.25, 0.25, 0.25]]),
        ("sequence", "mask", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_weights_outside_the_bounds_are_cut_or_left_out(level, method, expected):
    learner, sampler = logs([0.8, 0.1, 0.3], [0.1, 0.9, 0.9]), logs([0.2, 0.2, 0.3], [0.8, 0.1, 0.1])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    weights = importance_weights(learner, sampler, mask, level, method, low=0.25, high=3.0)
    assert weights.tolist() == [pytest.approx(row) for row in expected]


def test_the_upper_bound_holds_for_sequences_too():
    # 2 * 3 = 6
    for method, expected in {"truncate": [2.0, 2.0], "mask": [0.0, 0.0]}.items():
        weights = importance_weights(logs([0.2, 0.3]), logs([0.1, 0.1]), WHOLE, "sequence", method, low=0.0, high=2.0)
        assert weights.tolist() == [expected], method


def test_weights_count_sampled_tokens_only():
    # 2, others' token, 0.25: the product is 0.5
    learner, sampler = logs([0.2, 0.9, 0.1]), logs([0.1, 0.1, 0.4])
    for level, expected in {"token": [2.0, 1.0, 0.25], "sequence": [0.5, 0.5, 0.5]}.items():
        weights = importance_weights(learner, sampler, MIDDLE, level, "truncate", low=0.0, high=3.0)
        assert weights.tolist()[0] == pytest.approx(expected), level


def test_a_sampler_that_agrees_has_weights_of_exactly_one():
    logprobs = torch.tensor([[-0.1, -3.7, -41.3], [-2.3, -0.7, -1.1]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    for level, method in product(["token", "sequence"], ["truncate", "mask"]):
        weights = importance_weights(logprobs, logprobs, mask, level, method, 1.0, 1.0)
        assert weights.tolist() == [[1.0] * 3] * 2, (level, method)


def test_a_weight_at_its_bound_stays():
    weights = importance_weights(torch.zeros(1, 2), torch.zeros(1, 2), WHOLE, "token", "mask", low=1.0, high=1.0)
    assert weights.tolist() == [[1.0, 1.0]]


def test_weights_have_no_gradient_and_are_finite_between_far_apart_policies():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    for level in ("token", "sequence"):
        weights = importance_weights(logprobs, torch.full((1, 2), -400.0), WHOLE, level, "truncate", 0.0, math.inf)
        assert bool(weights.isfinite().all()), level
        assert not weights.requires_grad, level
