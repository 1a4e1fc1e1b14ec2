"""The three estimators of a KL: by hand, on the average over all tokens, and as what a loss descends on."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.objectives.kl import kl_estimate, kl_penalties
from lit_rl.objectives.losses import token_ratio

# --- one token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "estimator", "value", "slope"),
    [
        # ln 2 = 0.6931472; slopes are by log p: 1, log(p / q), 1 - q / p
        (0.5, 0.25, "k1", 0.6931472, 1.0),
        (0.5, 0.25, "k2", 0.2402265, 0.6931472),  # 0.6931472^2 / 2
        (0.5, 0.25, "k3", 0.1931472, 0.5),  # 0.5 - 1 + 0.6931472
        (0.25, 0.5, "k1", -0.6931472, 1.0),
        (0.25, 0.5, "k2", 0.2402265, -0.6931472),
        (0.25, 0.5, "k3", 0.3068528, -1.0),  # 2 - 1 - 0.6931472
    ],
)
def test_estimates_of_a_half_and_a_quarter(p, q, estimator, value, slope):
    logprobs = torch.tensor([[math.log(p)]], requires_grad=True)
    estimate = kl_estimate(logprobs, torch.tensor([[math.log(q)]]), estimator)
    estimate.sum().backward()
    assert float(estimate.detach()) == pytest.approx(value, abs=1e-6)
    assert float(logprobs.grad) == pytest.approx(slope, abs=1e-6)


def test_differences_that_may_be_rounding_cost_nothing_in_the_reward():
    # 2e-5 and 5e-6 nats off, and equal
    logprobs = torch.tensor([[-1.0, -1.0, -2.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.00002, -1.000005, -2.0]], dtype=torch.float64)
    penalties = kl_penalties(logprobs, reference, "k1")
    assert penalties.tolist()[0] == pytest.approx([2e-5, 0.0, 0.0], abs=1e-12)


def test_the_estimate_of_equal_policies_is_zero_and_flat():
    for estimator in ("k1", "k2", "k3"):
        p = torch.tensor([[-0.1, -3.0, -17.3]], requires_grad=True)
        estimate = kl_estimate(p, p.detach().clone(), estimator)
        estimate.sum().backward()
        assert estimate.abs().tolist() == [[0.0, 0.0, 0.0]], estimator
        assert p.grad.tolist() == [[1.0 if estimator == "k1" else 0.0] * 3], estimator


@pytest.mark.parametrize(
    ("estimator", "slopes"),
    [
        ("k2", [-1.0, 0.0, 1.0]),
        ("k3", [1 - math.e, 0.0, 1 - 1 / math.e]),  # 1 - exp(q - p)
    ],
)
def test_the_gradient_of_a_token_pulls_towards_the_reference(estimator, slopes):
    # Raise p where the reference is higher, lower it where the reference is lower.
    p = torch.full((1, 3), -2.0, requires_grad=True)
    kl_estimate(p, torch.tensor([[-1.0, -2.0, -3.0]]), estimator).sum().backward()
    assert p.grad[0].tolist() == pytest.approx(slopes, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(p=st.floats(-50, 0, width=32), q=st.floats(-50, 0, width=32))
def test_k2_and_k3_are_finite_and_never_negative(p, q):
    for estimator in ("k2", "k3"):
        value = float(kl_estimate(torch.tensor([[p]]), torch.tensor([[q]]), estimator))
        assert value >= 0, estimator
        assert math.isfinite(value), estimator


@settings(deadline=None, max_examples=50)
@given(p=st.floats(-50, 0), difference=st.floats(1e-6, 30), sign=st.sampled_from([-1, 1]))
def test_k2_and_k3_of_different_policies_are_not_zero(p, difference, sign):
    here, there = torch.tensor([[p, p + sign * difference]], dtype=torch.float64).T[:, None]
    for estimator in ("k2", "k3"):
        assert float(kl_estimate(here, there, estimator)) > 0, estimator


def test_far_apart_policies_have_a_finite_estimate_and_gradient():
    for estimator in ("k1", "k2", "k3"):
        logprobs = torch.tensor([[-200.0, -1.0]], requires_grad=True)
        value = kl_estimate(logprobs, torch.tensor([[-1.0, -200.0]]), estimator)
        value.sum().backward()
        assert bool(value.isfinite().all()), estimator
        assert bool(logprobs.grad.isfinite().all()), estimator


# --- all tokens --------------------------------------------------------------------------------------------------

# Three tokens. KL(p || q) = 0.5 ln(5/2) + 0.3 ln(3/2) + 0.2 ln(1/3) = 0.4581454 + 0.1216395 - 0.2197225 = 0.3600624.
# Its gradient by the logits of p is p_i (ln(p_i / q_i) - KL):
#   0.5 (0.9162907 - 0.3600624), 0.3 (0.4054651 - 0.3600624), 0.2 (-1.0986123 - 0.3600624)
P, Q, P_OLD = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.25, 0.25, 0.5]
KL = 0.3600624
KL_GRADIENT = [0.2781142, 0.0136208, -0.2917349]
# That of KL(q || p) is p_i - q_i.
REVERSE_KL_GRADIENT = [0.3, 0.1, -0.4]


def expectation(estimator, drawn_from, weighted):
    """Mean of an estimate over the tokens of a distribution, and its gradient by the logits of p."""
    logits = torch.tensor(P, dtype=torch.float64).log().requires_grad_()
    logprobs = logits.log_softmax(0)[None]
    reference, old = (torch.tensor([numbers], dtype=torch.float64).log() for numbers in (Q, drawn_from))
    estimate = kl_estimate(logprobs, reference, estimator)
    if weighted:
        estimate = estimate * token_ratio(logprobs, old)
    mean = (old.exp() * estimate).sum()
    mean.backward()
    return float(mean.detach()), logits.grad.tolist()


def test_k1_and_k3_average_to_the_true_divergence():
    for estimator in ("k1", "k3"):
        assert expectation(estimator, P, weighted=False)[0] == pytest.approx(KL, abs=1e-6), estimator


def test_k2_averages_to_something_else():
    # 0.5 * 0.9162907^2 / 2 + 0.3 * 0.4054651^2 / 2 + 0.2 * 1.0986123^2 / 2 = 0.2098972 + 0.0246603 + 0.1206949
    assert expectation("k2", P, weighted=False)[0] == pytest.approx(0.3552524, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [
        ("k1", [0.0, 0.0, 0.0]),
        ("k2", KL_GRADIENT),
        ("k3", REVERSE_KL_GRADIENT),
    ],
)
def test_what_an_unweighted_estimate_descends_on(estimator, gradient):
    assert expectation(estimator, P, weighted=False)[1] == pytest.approx(gradient, abs=1e-6)


def test_weighted_by_the_ratio_k1_and_k3_have_value_and_gradient_of_the_divergence():
    for estimator, drawn_from in product(("k1", "k3"), (P, P_OLD)):
        value, gradient = expectation(estimator, drawn_from, weighted=True)
        assert value == pytest.approx(KL, abs=1e-6), estimator
        assert gradient == pytest.approx(KL_GRADIENT, abs=1e-6), estimator


def test_unweighted_estimates_are_wrong_off_policy():
    # Without this the test above would prove nothing.
    for estimator in ("k1", "k2", "k3"):
        value, gradient = expectation(estimator, P_OLD, weighted=False)
        assert abs(value - KL) > 0.05, estimator
        assert max(abs(a - b) for a, b in zip(gradient, KL_GRADIENT, strict=True)) > 0.05, estimator
