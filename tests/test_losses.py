"""Losses per token against numbers worked out by hand, and what the weights add up to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.losses import clipped_surrogate, k3_kl, token_weights

# --- clipped surrogate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        # Inside the bounds 0.8 and 1.3 the loss is -r A.
        (1.25, 2.0, -2.5, -2.0),
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
    r = torch.tensor([[ratio]], requires_grad=True)
    value = clipped_surrogate(r, torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.3)
    value.sum().backward()
    assert value.tolist()[0] == pytest.approx([loss])
    assert r.grad.tolist()[0] == pytest.approx([slope])


def test_one_advantage_serves_a_whole_row():
    ratio = torch.tensor([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]])
    losses = clipped_surrogate(ratio, torch.tensor([[1.0], [-1.0]]), 0.2, 0.2)
    assert losses.tolist() == [pytest.approx([-1.0, -1.2, -0.5]), pytest.approx([1.0, 1.5, 0.8])]


# --- KL ----------------------------------------------------------------------------------------------------------


def test_the_kl_of_a_half_to_a_quarter():
    # exp(q - p) = 0.5, so 0.5 - ln 0.5 - 1 = 0.1931472; its gradient by p is 1 - 0.5
    p = torch.tensor([[math.log(0.5)]], requires_grad=True)
    value = k3_kl(p, torch.tensor([[math.log(0.25)]]))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(0.1931472, abs=1e-6)
    assert float(p.grad) == pytest.approx(0.5)


def test_the_kl_of_a_quarter_to_a_half():
    # exp(q - p) = 2, so 2 - ln 2 - 1 = 0.3068528; its gradient by p is 1 - 2
    p = torch.tensor([[math.log(0.25)]], requires_grad=True)
    value = k3_kl(p, torch.tensor([[math.log(0.5)]]))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(0.3068528, abs=1e-6)
    assert float(p.grad) == pytest.approx(-1.0)


def test_the_kl_of_equal_policies_is_zero_and_flat():
    p = torch.tensor([[-0.1, -3.0, -17.3]], requires_grad=True)
    value = k3_kl(p, p.detach().clone())
    value.sum().backward()
    assert value.tolist() == [[0.0, 0.0, 0.0]]
    assert p.grad.tolist() == [[0.0, 0.0, 0.0]]


@settings(deadline=None)
@given(st.floats(-50, 0, width=32), st.floats(-50, 0, width=32))
def test_the_kl_is_finite_and_never_negative(p, q):
    value = float(k3_kl(torch.tensor([[p]]), torch.tensor([[q]])))
    assert value >= 0
    assert math.isfinite(value)


@settings(deadline=None)
@given(st.floats(-20, 0, width=32), st.floats(2**-16, 19, width=32), st.sampled_from([-1, 1]))
def test_the_kl_of_different_policies_is_not_zero(p, difference, sign):
    assert float(k3_kl(torch.tensor([[p]]).double(), torch.tensor([[p + sign * difference]]).double())) > 0


def test_the_gradient_of_the_kl_pulls_towards_the_reference():
    p = torch.full((1, 3), -2.0, requires_grad=True)
    k3_kl(p, torch.tensor([[-1.0, -2.0, -3.0]])).sum().backward()
    # 1 - exp(q - p): raise p where the reference is higher, lower it where the reference is lower
    assert p.grad[0].tolist() == pytest.approx([1 - math.e, 0.0, 1 - 1 / math.e], abs=1e-6)


def test_the_kl_averages_to_the_true_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    expected = (p * k3_kl(p.log()[None], q.log()[None])[0]).sum()
    assert float(expected) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-12)


@pytest.mark.parametrize(("p", "q"), [(-200.0, -1.0), (-1.0, -200.0)])
def test_far_apart_policies_have_a_finite_kl_and_gradient(p, q):
    logprobs = torch.tensor([[p]], requires_grad=True)
    value = k3_kl(logprobs, torch.tensor([[q]]))
    value.sum().backward()
    assert bool(value.isfinite().all())
    assert bool(logprobs.grad.isfinite().all())


# --- weights -----------------------------------------------------------------------------------------------------

RAGGED = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()


def test_token_weights_share_one_equally_among_all_tokens():
    weights = token_weights(RAGGED, "token", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 7] * 4, [1 / 7, 0, 0, 0], [1 / 7, 1 / 7, 0, 0])]


def test_sequence_weights_give_every_row_the_same_share():
    weights = token_weights(RAGGED, "sequence", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 12] * 4, [1 / 3, 0, 0, 0], [1 / 6, 1 / 6, 0, 0])]


def test_constant_weights_divide_by_the_longest_possible_completion():
    weights = token_weights(RAGGED, "constant", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 30] * 4, [1 / 30, 0, 0, 0], [1 / 30, 1 / 30, 0, 0])]


@pytest.mark.parametrize(("aggregation", "total"), [("token", 1.0), ("sequence", 1.0), ("constant", 7 / 30)])
def test_weights_add_up(aggregation, total):
    assert float(token_weights(RAGGED, aggregation, 7, 3, 10).sum()) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_row_weighs_the_same_in_any_micro_batch(aggregation):
    whole = token_weights(RAGGED, aggregation, 7, 3, 10)
    alone = [token_weights(RAGGED[[row]], aggregation, 7, 3, 10) for row in range(3)]
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_row_without_tokens_weighs_nothing(aggregation):
    weights = token_weights(torch.tensor([[1, 1], [0, 0]]).bool(), aggregation, 2, 2, 2)
    assert weights[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_step_without_tokens_has_finite_weights(aggregation):
    assert token_weights(torch.zeros(2, 3).bool(), aggregation, 0, 2, 3).tolist() == [[0.0] * 3] * 2
