"""Generalized advantages on ragged completions, whitened, and the loss of values, against the slow reference."""

import random

import pytest
import slow_critic as slow
import torch

from lit_rl.objectives.advantages import generalized_advantages, token_rewards, whiten
from lit_rl.objectives.losses import value_loss


def padded(rows, fill=0.0):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)


def test_random_ragged_completions_have_the_advantages_of_the_slow_reference():
    for seed in range(10):
        rng = random.Random(seed)
        gamma, lam = rng.choice([1.0, 0.9, 0.0]), rng.choice([1.0, 0.95, 0.5, 0.0])
        lengths = [rng.randint(1, 9) for _ in range(12)]
        values = [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]
        penalties = [[rng.gauss(0, 0.1) for _ in range(length)] for length in lengths]
        rewards, in_loss = [rng.gauss(0, 1) for _ in lengths], [rng.random() < 0.8 for _ in lengths]
        after = [rng.gauss(0, 1) * (rng.random() < 0.5) for _ in lengths]  # half of them were cut off
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

        # What stands after a row's end is large, so that using it would be seen.
        earned = token_rewards(torch.tensor(rewards).double(), padded(penalties, fill=9.0), mask)
        found = generalized_advantages(earned, padded(values, 9.0), torch.tensor(after).double(), mask, gamma, lam)
        white = whiten(found, mask & torch.tensor(in_loss)[:, None], lambda values: values)

        paid = [slow.token_rewards(reward, row) for reward, row in zip(rewards, penalties, strict=True)]
        expected = [slow.generalized(*row, gamma, lam) for row in zip(paid, values, after, strict=True)]
        # Rewards are made from a float32 tensor: 1e-6.
        for tensors in ((found, padded(expected)), (white, padded(slow.whitened(expected, in_loss)))):
            torch.testing.assert_close(*tensors, rtol=1e-6, atol=1e-6, msg=lambda text, seed=seed: f"seed {seed}: {text}")


# --- the loss of values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "before", "target", "clip", "expected", "stopped"),
    [
        (1.5, 1.0, 3.0, 0.0, 1.125, False),  # (1.5 - 3)^2 / 2, no clip
        (1.1, 1.0, 3.0, 0.2, 1.805, False),  # within the clip: (1.1 - 3)^2 / 2
        (1.5, 1.0, 3.0, 0.2, 1.62, True),  # nearer by more than 0.2: (1.2 - 3)^2 / 2, nothing more to gain
        (0.5, 1.0, 3.0, 0.2, 3.125, False),  # further by more than 0.2: (0.5 - 3)^2 / 2, it must come back
        (0.5, 1.0, 0.0, 0.2, 0.32, True),  # (0.8 - 0)^2 / 2
        (1.5, 1.0, 0.0, 0.2, 1.125, False),
    ],
)
def test_value_loss_of_one_token(value, before, target, clip, expected, stopped):
    tensors = [torch.tensor([[number]], dtype=torch.float64) for number in (value, before, target)]
    loss, clipped = value_loss(*tensors, clip)
    assert float(loss) == pytest.approx(expected)
    assert bool(clipped) == stopped


def test_value_loss_and_its_gradient_are_those_of_the_slow_reference():
    for clip in (0.0, 0.1, 0.5):
        values = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        old, returns = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
        loss, clipped = value_loss(values, old, returns, clip)
        one_by_one = [
            slow.value_loss(v, float(o), float(r), clip)
            for v, o, r in zip(values.flatten(), old.flatten(), returns.flatten(), strict=True)
        ]
        torch.testing.assert_close(loss.flatten(), torch.stack(one_by_one))
        gradient, expected = (torch.autograd.grad(total, values)[0] for total in (loss.sum(), sum(one_by_one)))
        torch.testing.assert_close(gradient, expected)
        assert torch.equal(clipped, gradient == 0), clip
