"""Groups of several prompts and sizes, and tokens that others wrote: advantages and losses by numbers worked out by hand."""

import pytest
import torch
from tiny_rollouts import prompts_of, rollouts_of
from torch import Tensor

from lit_rl.objectives import Objective
from lit_rl.objectives.advantages import relative_advantages
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores

LIMIT = 4


def advantages_of(rollouts: Rollouts, baseline: str = "group", scale: str = "none", penalties: Tensor | None = None) -> Tensor:
    """(N, T) advantages of tokens in the loss, on one rank."""
    nothing = torch.zeros_like(rollouts.logprobs)
    alone = torch.nn.Identity()
    found = relative_advantages(rollouts, nothing if penalties is None else penalties, baseline, scale, alone, alone)
    return found * rollouts.loss_mask


def loss_of(o: Objective, rows: Rollouts, step: Rollouts, logprobs: Tensor, kl_coef: float = 0) -> Tensor:
    """Share of rows in the loss of the step that they are a part of."""
    num_tokens, num_sequences = int(step.loss_mask.sum()), int(counted_sequences(step.loss_mask, o.aggregation).sum())
    weights = token_weights(rows.loss_mask, o.aggregation, num_tokens, num_sequences, LIMIT) * rows.multiplicity[:, None]
    scores = TokenScores(logprobs, rows.entropies, rows.mask)
    return (o.token_losses(scores, rows, kl_coef).losses * weights).sum()


# --- groups of several prompts, of three rows and of one ---------------------------------------------------------


def mixed(**fields) -> Rollouts:
    """Group 0: a completion of each of two prompts; group 1: three of a third; group 2: one of a fourth."""
    rows = [[1, 1], [2], [3, 3, 3], [3], [4, 4], [5]]
    settings = {
        "prompt": torch.tensor([0, 1, 2, 2, 2, 3]),
        "group": torch.tensor([0, 0, 1, 1, 1, 2]),
        "rewards": torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0, 5.0]),
        # Row n has log-probability -(n + 1) at each token.
        "logprobs": -torch.arange(1.0, 7)[:, None].expand(6, 3) * (torch.arange(3) < torch.tensor([2, 1, 3, 1, 2, 1])[:, None]),
    }
    return rollouts_of(prompts_of([4], [5, 5], [6], [7]), 1, rows, **{**settings, **fields})


@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        # Means 0.5, 2 and 5; the last row has nobody to be compared with.
        ("group", "none", [0.5, -0.5, 1.0, -1.0, 0.0, 0.0]),
        # Stds 0.70711 and 1, to which 0.0001 is added.
        ("group", "group", [0.70701, -0.70701, 0.9999, -0.9999, 0.0, 0.0]),
        # All six: mean 2, squares 1 + 4 + 1 + 1 + 0 + 9 = 16, std sqrt(16 / 5) = 1.78885
        ("group", "batch", [0.27949, -0.27949, 0.55898, -0.55898, 0.0, 0.0]),
        # 1 against 0; 3 against 1.5, 1 against 2.5, 2 against 2
        ("leave_one_out", "none", [1.0, -1.0, 1.5, -1.5, 0.0, 0.0]),
        # 1 0 0: mean 1/3; 3 1 2 0: mean 1.5; 5 0: mean 2.5
        ("phantom_zero", "none", [0.66667, -0.33333, 1.5, -0.5, 0.5, 2.5]),
        ("none", "none", [1.0, 0.0, 3.0, 1.0, 2.0, 5.0]),
        # Ten tokens: 2 * 1 + 0 + 3 * 3 + 1 + 2 * 2 + 5 = 21, mean 2.1
        ("batch", "none", [-1.1, -2.1, 0.9, -1.1, -0.1, 2.9]),
    ],
)
def test_rows_are_compared_within_their_group_whatever_their_prompts(baseline, scale, expected):
    advantages = advantages_of(mixed(), baseline, scale)
    assert advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(advantages, advantages[:, :1] * mixed().mask)


def test_the_loss_weighs_tokens_or_rows_of_mixed_groups():
    # A token loses A (n + 1): 0.5, -1, 3, -4, 0, 0 in the rows of 2, 1, 3, 1, 2 and 1 tokens.
    # Over tokens: 2 * 0.5 - 1 + 3 * 3 - 4 = 5, by 10; over rows: -1.5 by 6; constant: 5 by 6 * 4.
    for aggregation, expected in {"token": 0.5, "sequence": -0.25, "constant": 5 / 24}.items():
        rollouts, o = mixed(), Objective(surrogate="reinforce", aggregation=aggregation)
        rollouts.advantages = advantages_of(rollouts)
        assert float(loss_of(o, rollouts, rollouts, rollouts.logprobs)) == pytest.approx(expected), aggregation


def test_the_loss_does_not_depend_on_how_mixed_groups_are_cut_joined_and_merged():
    o = Objective(surrogate="reinforce")
    rollouts = mixed()
    rollouts.advantages = advantages_of(rollouts)
    parts = [rollouts.select([2, 0]), rollouts.select([1])]
    assert [len(part) for part in parts] == [3, 3]
    # Groups 2 and 0: 2 * 0.5 - 1 = 0; group 1: 9 - 4 = 5
    assert [float(loss_of(o, part, rollouts, part.logprobs)) for part in parts] == pytest.approx([0.0, 0.5])
    joined = Rollouts.join(parts)
    assert advantages_of(joined)[:, 0].tolist() == [0.0, 0.5, -0.5, 1.0, -1.0, 0.0]
    assert float(loss_of(o, joined, rollouts, joined.logprobs)) == pytest.approx(0.5)

    # The two groups twice, as one group: 16 rows of which half are equal to another.
    twice = Rollouts.join([rollouts, rollouts])
    twice.prompt, twice.group = twice.prompt % 4, twice.group % 3
    for name in ("logprobs", "entropies"):
        setattr(twice, name, getattr(rollouts, name).repeat(2, 1))
    merged = twice.merge_duplicates()
    assert merged.multiplicity.tolist() == [2.0] * 6
    assert merged.group.tolist() == [0, 0, 1, 1, 1, 2]
    assert float(loss_of(o, merged, twice, merged.logprobs)) == pytest.approx(0.5)


# --- tokens that the policy did not sample -----------------------------------------------------------------------


def with_other_authors(**fields) -> Rollouts:
    """Two rows of one prompt: others wrote the middle of the first and the end of the second; their numbers mean nothing."""
    settings = {
        "sampled": torch.tensor([[1, 0, 1], [1, 1, 0]]).bool(),
        "rewards": torch.tensor([1.0, 0.0]),
        "logprobs": torch.tensor([[-1.0, 7.0, -1.0], [-1.0, -1.0, 7.0]]),
        "entropies": torch.tensor([[2.0, 99.0, 2.0], [2.0, 2.0, 99.0]], requires_grad=True),
        "ref_logprobs": torch.tensor([[-1.5, -99.0, -1.5], [-1.5, -1.5, -99.0]]),
    }
    return rollouts_of(prompts_of([4]), 2, [[1, 2, 3], [1, 2, 3]], **{**settings, **fields})


def test_tokens_of_others_have_no_advantage():
    # Rewards 1 and 0, two sampled tokens each: mean 0.5, and for the batch std sqrt(4 * 0.25 / 3) = 0.57735
    for baseline, scale, size in [("group", "none", 0.5), ("leave_one_out", "none", 1.0), ("batch", "batch", 0.86603)]:
        advantages = advantages_of(with_other_authors(), baseline, scale)
        assert advantages[0].tolist() == pytest.approx([size, 0.0, size], abs=1e-5), baseline
        assert advantages[1].tolist() == pytest.approx([-size, -size, 0.0], abs=1e-5), baseline


def test_tokens_of_others_carry_no_loss_and_no_kl():
    # Each sampled token: -A + 0.1 KL, KL = log p - log q = 0.5. Four of them: (2 * (-0.45) + 2 * 0.55) / 4
    # Slopes by log p: (-A + 0.1) / 4
    rollouts, o = with_other_authors(), Objective(kl_estimator="k1")
    rollouts.advantages = advantages_of(rollouts)
    logprobs = (rollouts.logprobs * rollouts.sampled).requires_grad_()  # a policy scores other tokens with 0
    loss = loss_of(o, rollouts, rollouts, logprobs, kl_coef=0.1)
    (slopes,) = torch.autograd.grad(loss, [logprobs])
    assert float(loss.detach()) == pytest.approx(0.05)
    assert slopes.tolist() == [pytest.approx([-0.1, 0.0, -0.1]), pytest.approx([0.15, 0.15, 0.0])]


def test_the_ratio_of_a_sequence_and_its_weights_count_sampled_tokens_only():
    # log p rises by 0.2 and 0.4 at the first row's tokens: ratio e^0.3; it falls by 0.2 and 0.4 in the second: e^-0.3.
    rollouts, o = with_other_authors(), Objective(ratio="sequence", aggregation="sequence", clip_low=0.5, clip_high=0.5)
    rollouts.advantages = advantages_of(rollouts)
    rise = torch.tensor([[0.2, 50.0, 0.4], [-0.2, -0.4, -50.0]])
    loss = loss_of(o, rollouts, rollouts, rollouts.logprobs + rise)
    # (-0.5 * 1.349859 + 0.5 * 0.740818) / 2
    assert float(loss) == pytest.approx(-0.15226, abs=1e-5)
