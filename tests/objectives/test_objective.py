"""Losses, gradients and advantages against a slow reference that was written from the papers, in every combination."""

import random
from itertools import product

import pytest
import slow_reference as slow
import torch
from conftest import quiet_trainer, tiny_spec
from tiny_rollouts import prompts_of

from lit_rl.algorithms import GRPO
from lit_rl.objectives import Correction, Objective
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores

EMPTY, SINGLE, UNCOUNTED = 1, 2, 3
"""Rows of no token, of one token, and left out of the loss."""
WIDTH, LIMIT = 4, 7
KL_COEF, ENTROPY_COEF = 0.3, 0.2
SEEDS = range(7)

SURROGATES = {
    "clip": {"clip_low": 0.2, "clip_high": 0.3},
    "dual clip": {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 1.5},
    "clip by sequence": {"ratio": "sequence", "clip_low": 0.1, "clip_high": 0.15},
    "cispo": {"surrogate": "cispo", "clip_low": 0.2, "clip_high": 0.3},
    "sapo": {"surrogate": "sapo", "sapo_positive": 0.8, "sapo_negative": 1.4},
    "reinforce": {"surrogate": "reinforce"},
}
AGGREGATIONS = ["token", "sequence", "constant"]
KLS = [None, {"kl_in": "reward"}] + [
    {"kl_estimator": estimator, "kl_weighted": weighted} for estimator in ("k1", "k2", "k3") for weighted in (False, True)
]
CORRECTIONS = [Correction()] + [
    Correction(method, level, low=0.7, high=1.3) for method in ("truncate", "mask") for level in ("token", "sequence")
]
THRESHOLD = 0.1


class Batch:
    """Random ragged rows, once as lists for the slow reference and once padded with numbers that must not count."""

    def __init__(self, seed: int, stepped: bool = True, focused: bool = False, referenced: bool = True) -> None:
        draw = random.Random(seed)
        self.lengths = [draw.randint(2, WIDTH) for _ in range(7)] + [WIDTH]
        self.lengths[EMPTY], self.lengths[SINGLE] = 0, 1
        self.logprobs, self.entropies = self.table(draw, -3, -0.5), self.table(draw, 0.1, 2)
        drift = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64)[torch.tensor(draw.sample(range(8), 8)), None]
        sampler = self.logprobs + self.table(draw, -0.6, 0.6) + drift
        old = sampler + self.table(draw, -0.5, 0.5)
        signs = torch.tensor([[draw.choice([-1, -1, 0, 1, 1]) for _ in range(WIDTH)] for _ in self.lengths])
        advantages = self.table(draw, 0.2, 2) * signs
        reference, gradient_mask = self.logprobs + self.table(draw, -1, 1), self.table(draw, 0, 1) < 0.5
        self.rollouts = Rollouts(
            prompts_of([4], [5], [6], [7]),
            group_size=2,
            completion_ids=torch.ones(8, WIDTH, dtype=torch.long),
            lengths=torch.tensor(self.lengths),
            truncated=torch.zeros(8, dtype=torch.bool),
            logprobs=sampler,
            entropies=self.entropies,
            temperature=torch.ones(8, dtype=torch.float64),
            advantages=advantages,
            old_logprobs=old if stepped else None,
            ref_logprobs=reference if referenced else None,
            gradient_mask=gradient_mask if focused else None,
            in_loss=torch.arange(8) != UNCOUNTED,
        )
        rows = zip(*map(self.cut, (sampler, advantages, old, reference, gradient_mask)), strict=True)
        self.rows = [
            slow.Row(s, a, o if stepped else None, r if referenced else [], f if focused else None, n != UNCOUNTED)
            for n, (s, a, o, r, f) in enumerate(rows)
        ]

    @staticmethod
    def table(draw: random.Random, low: float, high: float) -> torch.Tensor:
        return torch.tensor([[draw.uniform(low, high) for _ in range(WIDTH)] for _ in range(8)], dtype=torch.float64)

    def cut(self, values: torch.Tensor) -> list[list]:
        return [row[:length] for row, length in zip(values.tolist(), self.lengths, strict=True)]

    def leaves(self, values: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in row] for row in self.cut(values)]


Result = tuple[float, torch.Tensor, torch.Tensor]
"""Loss, its gradient by the log-probabilities and by the entropies."""


def fast(o: Objective, batch: Batch, entropy_coef: float) -> Result:
    """What the library says."""
    rows = batch.rollouts
    logprobs, entropies = batch.logprobs.clone().requires_grad_(), batch.entropies.clone().requires_grad_()
    mask = rows.loss_mask
    sequences = int(counted_sequences(mask, o.aggregation).sum())
    weights = token_weights(mask, o.aggregation, int(mask.sum()), sequences, LIMIT, dtype=torch.float64)
    losses = o.token_losses(TokenScores(logprobs, entropies, mask), rows, KL_COEF, entropy_coef).losses
    loss = (losses * weights).sum()
    loss.backward()
    return float(loss.detach()), logprobs.grad, torch.zeros_like(entropies) if entropies.grad is None else entropies.grad


def expected(o: Objective, batch: Batch, entropy_coef: float) -> Result:
    """What the slow reference says, with gradients of 0 behind a row's end."""

    def gradient(leaves: list[list[torch.Tensor]]) -> torch.Tensor:
        rows = [[0.0 if leaf.grad is None else float(leaf.grad) for leaf in row] for row in leaves]
        return torch.tensor([row + [0.0] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)

    logprobs, entropies = batch.leaves(batch.logprobs), batch.leaves(batch.entropies)
    loss = slow.step_loss(o, batch.rows, logprobs, entropies, KL_COEF, entropy_coef, LIMIT)
    loss.backward()
    return float(loss.detach()), gradient(logprobs), gradient(entropies)


def assert_agree(o: Objective, batch: Batch, entropy_coef: float) -> None:
    ours, theirs = fast(o, batch, entropy_coef), expected(o, batch, entropy_coef)
    assert abs(ours[0] - theirs[0]) < 1e-10, (o, entropy_coef)
    for gradient, slow_gradient in zip(ours[1:], theirs[1:], strict=True):
        assert float((gradient - slow_gradient).abs().max()) < 1e-10, (o, entropy_coef)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", SURROGATES)
def test_loss_and_gradient_are_those_of_the_slow_reference(name, aggregation):
    combinations = product(KLS, CORRECTIONS, [0.0, THRESHOLD], [0.0, ENTROPY_COEF], [False, True])
    for number, (kl, correction, threshold, entropy_coef, focused) in enumerate(combinations):
        options = {"correction": correction, "off_policy_threshold": threshold, **(kl or {}), **SURROGATES[name]}
        # On every third batch the learner has not taken a step yet.
        batch = Batch(number % len(SEEDS), stepped=number % 3 > 0, focused=focused, referenced=kl is not None)
        assert_agree(Objective(aggregation=aggregation, **options), batch, entropy_coef)


def test_a_row_of_one_advantage_has_the_gradient_of_the_sequence_ratio_itself():
    """GSPO, arXiv 2507.18071, eqs. 5 and 7, with the geometric mean differentiated as it is written."""
    o = Objective(aggregation="sequence", **SURROGATES["clip by sequence"])
    for seed in SEEDS:
        batch = Batch(seed, referenced=False)
        batch.rollouts.advantages = batch.rollouts.advantages[:, :1].expand(-1, WIDTH)
        leaves, total, rows = batch.leaves(batch.logprobs), 0, [n for n in range(8) if n not in (EMPTY, UNCOUNTED)]
        for n in rows:
            old, a = batch.rows[n].sampler, batch.rows[n].advantages[0]
            s = torch.exp(sum(new - before for new, before in zip(leaves[n], old, strict=True)) / len(old))
            total = total - torch.minimum(s * a, s.clamp(1 - o.clip_low, 1 + o.clip_high) * a)
        (total / len(rows)).backward()
        loss, gradient, _ = fast(o, batch, 0.0)
        assert loss == pytest.approx(float(total.detach()) / len(rows), abs=1e-10)
        for n in rows:
            assert gradient[n, : batch.lengths[n]].tolist() == pytest.approx(
                [float(leaf.grad) for leaf in leaves[n]], abs=1e-10
            )


@pytest.mark.parametrize("name", SURROGATES)
def test_the_objective_does_not_depend_on_the_default_dtype(name):
    """In bf16-true Lightning makes bfloat16 the default during a step."""
    o = Objective(correction=CORRECTIONS[1], off_policy_threshold=THRESHOLD, kl_weighted=True, **SURROGATES[name])
    before = fast(o, Batch(0), ENTROPY_COEF)
    batch = Batch(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        after = fast(o, batch, ENTROPY_COEF)
    finally:
        torch.set_default_dtype(torch.float32)
    assert after[0] == before[0]
    assert torch.equal(after[1], before[1])


# --- what the batches hold ---------------------------------------------------------------------------------------


def counted_tokens(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    return values[batch.rollouts.loss_mask]


@pytest.mark.parametrize("name", ["clip", "dual clip", "clip by sequence", "cispo"])
def test_ratios_lie_on_both_sides_of_the_bounds_for_advantages_of_both_signs_and_zero(name):
    o, seen = Objective(**SURROGATES[name]), set()
    for seed in SEEDS:
        batch = Batch(seed)
        for row, logprobs in zip(batch.rows, batch.leaves(batch.logprobs), strict=True):
            if row.in_loss and row.sampler:
                places = [r.item() for r in slow.ratios(o, logprobs, row.sampler)]
                regions = [(r > 1 - o.clip_low) + (r > 1 + o.clip_high) + (r > (o.dual_clip or 9)) for r in places]
                seen |= {(region, (a > 0) - (a < 0)) for region, a in zip(regions, row.advantages, strict=True)}
    assert seen == set(product(range(4 if o.dual_clip else 3), [-1, 0, 1]))


@pytest.mark.parametrize("c", CORRECTIONS[1:])
def test_weights_of_the_sampler_lie_on_both_sides_of_their_bounds(c):
    wide = Correction("truncate", c.level, 0.0, 1e9)
    weights = [
        w for seed in SEEDS for row in Batch(seed).rows if row.in_loss for w in slow.sampler_weights(wide, row.old, row.sampler)
    ]
    assert {(w < c.low) - (w > c.high) for w in weights} == {-1, 0, 1}


def test_some_rows_have_drifted_and_some_have_not():
    batches = [Batch(seed) for seed in SEEDS]
    rows = [(row, leaves) for b in batches for row, leaves in zip(b.rows, b.leaves(b.logprobs), strict=True) if row.sampler]
    bad = [slow.has_drifted(row, leaves, THRESHOLD) for row, leaves in rows if row.in_loss and min(row.advantages) < 0]
    assert set(bad) == {True, False}


def test_figures_are_the_shares_and_means_that_their_names_say():
    o = Objective(off_policy_threshold=THRESHOLD, correction=CORRECTIONS[1], **SURROGATES["clip"])
    for seed in SEEDS:
        batch = Batch(seed)
        told = o.token_losses(TokenScores(batch.logprobs, batch.entropies, None), batch.rollouts, KL_COEF, 0.0)
        metrics = told.shares | told.means
        told = {name: float(counted_tokens(value.double().expand(8, WIDTH), batch).mean()) for name, value in metrics.items()}
        rows = [(row, batch.leaves(batch.logprobs)[n]) for n, row in enumerate(batch.rows) if row.in_loss and row.sampler]
        tokens = [
            (r.item(), a, slow.has_drifted(row, new, THRESHOLD), slow.kl("k3", p, q), slow.kl("k3", p.new_tensor(s), before))
            for row, new in rows
            for r, a, p, q, s, before in zip(
                slow.ratios(o, new, row.old), row.advantages, new, row.reference, row.sampler, row.old, strict=True
            )
        ]
        low = sum(r < 0.8 and a < 0 for r, a, *_ in tokens)
        high = sum(r > 1.3 and a > 0 for r, a, *_ in tokens)
        sums = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}
        sums["off_policy_masked"] = sum(drifted and a < 0 for _, a, drifted, *_ in tokens)
        sums["kl"], sums["sampling/mismatch_kl"] = sum(t[3] for t in tokens).item(), sum(t[4] for t in tokens).item()
        assert told == pytest.approx({name: value / len(tokens) for name, value in sums.items()}, abs=1e-10)


# --- advantages --------------------------------------------------------------------------------------------------

SCALED = [*product(["group", "leave_one_out", "phantom_zero"], ["group", "batch", "none"])]
SCALED += [("batch", "batch"), ("batch", "none"), ("none", "none")]


def scored_rollouts(seed: int) -> Rollouts:
    """Three groups of four ragged rows, one empty, one left out of the loss; the rewards of the first group are equal."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WIDTH + 1, (12,), generator=draw)
    lengths[EMPTY], lengths[-1] = 0, WIDTH
    mask = torch.arange(WIDTH) < lengths[:, None]
    first, second, third = (torch.rand(12, WIDTH, generator=draw, dtype=torch.float64) * mask for _ in range(3))
    rewards = torch.randint(0, 3, (12,), generator=draw).double() / 3
    rewards[:4] = 0.1
    return Rollouts(
        prompts_of([4], [5], [6]),
        group_size=4,
        completion_ids=torch.ones(12, WIDTH, dtype=torch.long),
        lengths=lengths,
        truncated=lengths == WIDTH,
        logprobs=-first,
        entropies=third,
        temperature=torch.ones(12, dtype=torch.float64),
        rewards=rewards,
        ref_logprobs=-second,
        in_loss=torch.arange(12) != UNCOUNTED,
    )


@pytest.mark.parametrize(("baseline", "scale"), SCALED)
def test_advantages_are_those_of_the_slow_reference(tmp_path, baseline, scale):
    for seed, estimator, kl_in, negative in product(SEEDS, ["k1", "k2", "k3"], ["loss", "reward"], [1.0, 0.4]):
        o = Objective(kl_estimator=estimator, kl_in=kl_in)
        module = GRPO(
            tiny_spec(),
            group_size=4,
            baseline=baseline,
            advantage_scale=scale,
            negative_weight=negative,
            objective=o,
            kl_coef=KL_COEF,
        )
        module.trainer = quiet_trainer(tmp_path)
        rollouts = scored_rollouts(seed)
        penalties = [
            [KL_COEF * slow.kl(estimator, p, q.item()).item() * (kl_in == "reward") for p, q in zip(*row, strict=True)]
            for row in (
                (p[:length], q[:length])
                for p, q, length in zip(rollouts.logprobs, rollouts.ref_logprobs, rollouts.lengths.tolist(), strict=True)
            )
        ]
        rewards, counted = rollouts.rewards.tolist(), rollouts.in_loss.tolist()
        module.add_advantages(rollouts)
        found = slow.token_advantages(baseline, scale, 4, rewards, penalties, counted)
        for n, row in enumerate(found):
            weighted = [a * negative if a < 0 else a for a in row]
            assert rollouts.advantages[n].tolist() == pytest.approx(weighted + [0.0] * (WIDTH - len(row)), abs=1e-10)
