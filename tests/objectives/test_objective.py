"""Losses, gradients and advantages against a slow reference that was written from the papers.

Rows are ragged and hold tokens that the policy did not sample; the slow reference never sees those.
"""

import random
from itertools import product

import pytest
import slow_critic
import slow_reference as slow
import torch
from conftest import quiet_trainer, tiny_spec
from tiny_rollouts import prompts_of

from lit_rl.algorithms import GRPO
from lit_rl.objectives import Correction, Objective
from lit_rl.objectives.advantages import generalized_advantages, relative_advantages, token_rewards
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.objectives.kl import kl_penalties
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores

EMPTY, SINGLE, UNCOUNTED, FOREIGN = 1, 2, 3, 4
"""Rows of no token, of one token, left out of the loss, and without a sampled token."""
WIDTH, LIMIT = 5, 7
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


def sampled_places(lengths: list[int], draw: random.Random) -> torch.Tensor:
    """(N, T) bool: in half of the rows others wrote some tokens, in the middle, at the start or at the end."""
    places = torch.tensor([[t < length for t in range(WIDTH)] for length in lengths])
    for row, length in enumerate(lengths):
        for t in range(length):
            if row == FOREIGN or (row % 2 == 0 and length > 2 and draw.random() < 0.4):
                places[row, t] = False
        if row != FOREIGN and length and not places[row].any():
            places[row, draw.randrange(length)] = True
    return places


def kept(values: torch.Tensor, sampled: torch.Tensor) -> list[list]:
    """The values of sampled tokens, row by row."""
    return [row[places].tolist() for row, places in zip(values, sampled, strict=True)]


def spread(rows: list[list[float]], sampled: torch.Tensor) -> torch.Tensor:
    """(N, T) numbers of sampled tokens in their places, 0 elsewhere."""
    values = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    return torch.zeros(sampled.shape, dtype=torch.float64).masked_scatter(sampled, values)


class Batch:
    """Random ragged rows, as lists for the slow reference and as tensors, which hold numbers elsewhere that must not count."""

    def __init__(self, seed: int, stepped: bool = True, focused: bool = False, referenced: bool = True) -> None:
        draw = random.Random(seed)
        lengths = [draw.randint(2, WIDTH) for _ in range(7)] + [WIDTH]
        lengths[EMPTY], lengths[SINGLE] = 0, 1
        self.sampled = sampled_places(lengths, draw)
        self.logprobs, self.entropies = self.table(draw, -3, -0.5), self.table(draw, 0.1, 2)
        drift = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64)[torch.tensor(draw.sample(range(8), 8)), None]
        sampler = self.logprobs + self.table(draw, -0.6, 0.6) + drift
        sampler += self.table(draw, -9, 9) * ~self.sampled
        old = sampler + self.table(draw, -0.5, 0.5)
        signs = torch.tensor([[draw.choice([-1, -1, 0, 1, 1]) for _ in range(WIDTH)] for _ in lengths])
        advantages = self.table(draw, 0.2, 2) * signs
        reference, gradient_mask = self.logprobs + self.table(draw, -1, 1), self.table(draw, 0, 1) < 0.5
        self.rollouts = Rollouts(
            prompts_of([4], [5], [6], [7]),
            completion_ids=torch.ones(8, WIDTH, dtype=torch.long),
            lengths=torch.tensor(lengths),
            truncated=torch.zeros(8, dtype=torch.bool),
            sampled=self.sampled,
            logprobs=sampler,
            entropies=self.entropies,
            temperature=torch.ones(8, dtype=torch.float64),
            advantages=advantages,
            old_logprobs=old if stepped else None,
            ref_logprobs=reference if referenced else None,
            gradient_mask=gradient_mask if focused else None,
            in_loss=torch.arange(8) != UNCOUNTED,
        )
        columns = [kept(values, self.sampled) for values in (sampler, advantages, old, reference, gradient_mask)]
        self.rows = [
            slow.Row(s, a, o if stepped else None, r if referenced else [], f if focused else None, n != UNCOUNTED)
            for n, (s, a, o, r, f) in enumerate(zip(*columns, strict=True))
        ]

    @staticmethod
    def table(draw: random.Random, low: float, high: float) -> torch.Tensor:
        return torch.tensor([[draw.uniform(low, high) for _ in range(WIDTH)] for _ in range(8)], dtype=torch.float64)

    def leaves(self, values: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in row] for row in kept(values, self.sampled)]


Result = tuple[float, torch.Tensor, torch.Tensor]
"""Loss, its gradient by the log-probabilities and by the entropies."""


def fast(o: Objective, batch: Batch, entropy_coef: float) -> Result:
    """Result of the library."""
    rows = batch.rollouts
    logprobs, entropies = batch.logprobs.clone().requires_grad_(), batch.entropies.clone().requires_grad_()
    mask = rows.loss_mask
    sequences = int(counted_sequences(mask, o.aggregation).sum())
    weights = token_weights(mask, o.aggregation, int(mask.sum()), sequences, LIMIT, dtype=torch.float64)
    losses = o.token_losses(TokenScores(logprobs, entropies, mask), rows, KL_COEF).losses
    loss = (losses * weights).sum() - entropy_coef * (entropies * mask).sum() / mask.sum()
    loss.backward()
    return float(loss.detach()), logprobs.grad, torch.zeros_like(entropies) if entropies.grad is None else entropies.grad


def expected(o: Objective, batch: Batch, entropy_coef: float) -> Result:
    """Result of the slow reference, with gradients of 0 at tokens that were not sampled."""

    def gradient(leaves: list[list[torch.Tensor]]) -> torch.Tensor:
        return spread([[0.0 if leaf.grad is None else float(leaf.grad) for leaf in row] for row in leaves], batch.sampled)

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
    """Every KL with every correction; the options that are independent of both are drawn."""
    draw = random.Random(f"{name} {aggregation}")
    for number, (kl, correction) in enumerate(product(KLS, CORRECTIONS)):
        threshold, entropy_coef, focused = (
            draw.choice(pair) for pair in ([0.0, THRESHOLD], [0.0, ENTROPY_COEF], [False, True])
        )
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
        leaves, total = batch.leaves(batch.logprobs), 0
        rows = [n for n in range(8) if n not in (EMPTY, UNCOUNTED, FOREIGN)]
        for n in rows:
            old, a = batch.rows[n].sampler, float(batch.rollouts.advantages[n, 0])
            s = torch.exp(sum(new - before for new, before in zip(leaves[n], old, strict=True)) / len(old))
            total = total - torch.minimum(s * a, s.clamp(1 - o.clip_low, 1 + o.clip_high) * a)
        (total / len(rows)).backward()
        loss, gradient, _ = fast(o, batch, 0.0)
        assert loss == pytest.approx(float(total.detach()) / len(rows), abs=1e-10)
        slopes = [[0.0 if leaf.grad is None else float(leaf.grad) for leaf in row] for row in leaves]
        torch.testing.assert_close(gradient, spread(slopes, batch.sampled), rtol=0, atol=1e-10)


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


# --- contents of the batches ---------------------------------------------------------------------------------------


def counted_tokens(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    return values[batch.rollouts.loss_mask]


@pytest.mark.parametrize("name", ["clip", "dual clip", "clip by sequence", "cispo"])
def test_ratios_lie_on_both_sides_of_the_bounds_for_advantages_of_both_signs_and_zero(name):
    o, seen = Objective(**SURROGATES[name]), set()
    for seed in range(12):
        batch = Batch(seed)
        for row, logprobs in zip(batch.rows, batch.leaves(batch.logprobs), strict=True):
            if row.in_loss and row.sampler:
                places = [r.item() for r in slow.ratios(o, logprobs, row.sampler)]
                regions = [(r > 1 - o.clip_low) + (r > 1 + o.clip_high) + (r > (o.dual_clip or 9)) for r in places]
                seen |= {(region, (a > 0) - (a < 0)) for region, a in zip(regions, row.advantages, strict=True)}
    assert seen == set(product(range(4 if o.dual_clip else 3), [-1, 0, 1]))


def test_weights_of_the_sampler_lie_on_both_sides_of_their_bounds():
    rows = [row for seed in SEEDS for row in Batch(seed).rows if row.in_loss]
    for c in CORRECTIONS[1:]:
        wide = Correction("truncate", c.level, 0.0, 1e9)
        weights = [w for row in rows for w in slow.sampler_weights(wide, row.old, row.sampler)]
        assert {(w < c.low) - (w > c.high) for w in weights} == {-1, 0, 1}, c


def test_others_wrote_tokens_at_the_start_in_the_middle_and_at_the_end():
    seen = set()
    for seed in SEEDS:
        for row, mask in zip(Batch(seed).sampled.tolist(), Batch(seed).rollouts.mask.tolist(), strict=True):
            places = [t for t in range(WIDTH) if row[t]]
            seen |= {
                "start" if t < places[0] else "end" if t > places[-1] else "middle"
                for t in range(WIDTH)
                if places and mask[t] and not row[t]
            }
    assert seen == {"start", "middle", "end"}


def test_some_rows_have_drifted_and_some_have_not():
    batches = [Batch(seed) for seed in SEEDS]
    rows = [(row, leaves) for b in batches for row, leaves in zip(b.rows, b.leaves(b.logprobs), strict=True) if row.sampler]
    bad = [slow.has_drifted(row, leaves, THRESHOLD) for row, leaves in rows if row.in_loss and min(row.advantages) < 0]
    assert set(bad) == {True, False}


def test_metrics_are_the_shares_and_means_that_their_names_say():
    o = Objective(off_policy_threshold=THRESHOLD, correction=CORRECTIONS[1], **SURROGATES["clip"])
    for seed in SEEDS:
        batch = Batch(seed)
        told = o.token_losses(TokenScores(batch.logprobs, batch.entropies, None), batch.rollouts, KL_COEF)
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


SIZES = [4, 1, 3, 2, 4, 1]
"""Rows of the groups; the rewards of the first group are equal."""


def scored_rollouts(seed: int) -> Rollouts:
    """Ragged rows in groups of several sizes and prompts, in any order; some tokens not sampled, a row not in the loss."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = sum(SIZES)
    lengths = [draw.randint(1, WIDTH) for _ in range(rows)]
    lengths[EMPTY], lengths[-1] = 0, WIDTH
    sampled = sampled_places(lengths, draw)
    first, second, third = (torch.rand(rows, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))
    group = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))[torch.randperm(rows, generator=generator)]
    rewards = torch.randint(0, 3, (rows,), generator=generator).double() / 3
    rewards[group == 0] = 0.1
    return Rollouts(
        prompts_of(*[[4]] * rows),
        prompt=torch.arange(rows),
        group=group,
        completion_ids=torch.ones(rows, WIDTH, dtype=torch.long),
        lengths=torch.tensor(lengths),
        truncated=torch.tensor(lengths) == WIDTH,
        sampled=sampled,
        logprobs=-first,
        entropies=third,
        temperature=torch.ones(rows, dtype=torch.float64),
        rewards=rewards,
        ref_logprobs=-second,
        in_loss=torch.arange(rows) != UNCOUNTED,
    )


def slow_penalties(rollouts: Rollouts, estimator: str) -> list[list[float]]:
    """KL penalties of the sampled tokens."""
    columns = (kept(values, rollouts.sampled) for values in (rollouts.logprobs, rollouts.ref_logprobs))
    return [
        [KL_COEF * slow.kl(estimator, torch.tensor(p, dtype=torch.float64), q).item() for p, q in zip(*row, strict=True)]
        for row in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize(("baseline", "scale"), SCALED)
def test_advantages_are_those_of_the_slow_reference(baseline, scale):
    for seed, estimator in product(SEEDS, [None, "k1", "k3"]):
        rollouts = scored_rollouts(seed)
        counted = rollouts.in_loss.tolist()
        penalties, paid = torch.zeros_like(rollouts.logprobs), [[0.0] * int(n) for n in rollouts.sampled.sum(1)]
        if estimator:
            penalties = KL_COEF * kl_penalties(rollouts.logprobs, rollouts.ref_logprobs, estimator) * rollouts.sampled
            paid = slow_penalties(rollouts, estimator)
        found = relative_advantages(rollouts, penalties, baseline, scale, lambda each: each, lambda each: each)
        expected = slow.token_advantages(baseline, scale, rollouts.group.tolist(), rollouts.rewards.tolist(), paid, counted)
        message = f"seed {seed}, {estimator}"
        assert torch.allclose(found * rollouts.loss_mask, spread(expected, rollouts.sampled), rtol=0, atol=1e-10), message


def test_a_module_weighs_negative_advantages_of_rewards_less_the_kl(tmp_path):
    o = Objective(kl_estimator="k2", kl_in="reward")
    module = GRPO(
        tiny_spec(), baseline="leave_one_out", advantage_scale="none", negative_weight=0.4, objective=o, kl_coef=KL_COEF
    )
    module.trainer = quiet_trainer(tmp_path)
    rollouts = scored_rollouts(0)
    columns = rollouts.rewards.tolist(), slow_penalties(rollouts, "k2"), rollouts.in_loss.tolist()
    expected = spread(slow.token_advantages("leave_one_out", "none", rollouts.group.tolist(), *columns), rollouts.sampled)
    module.add_advantages(rollouts)
    weighted = torch.where(expected < 0, 0.4 * expected, expected)
    torch.testing.assert_close(rollouts.advantages, weighted, rtol=0, atol=1e-10)


def test_generalized_advantages_step_over_tokens_that_were_not_sampled():
    for seed, gamma, lam in product(range(3), [1.0, 0.9], [0.0, 0.5, 1.0]):
        rollouts, draw = scored_rollouts(seed), torch.Generator().manual_seed(seed)
        values = torch.rand(rollouts.sampled.shape, generator=draw, dtype=torch.float64)
        bootstrap = torch.rand(len(rollouts), generator=draw, dtype=torch.float64) * rollouts.truncated
        penalties = kl_penalties(rollouts.logprobs, rollouts.ref_logprobs, "k1")
        rewards = token_rewards(rollouts.rewards, penalties, rollouts.sampled)
        found = generalized_advantages(rewards, values, bootstrap, rollouts.sampled, gamma, lam)
        rows = zip(
            rollouts.rewards.tolist(),
            kept(penalties, rollouts.sampled),
            kept(values, rollouts.sampled),
            bootstrap.tolist(),
            strict=True,
        )
        expected = [
            slow_critic.generalized(slow_critic.token_rewards(reward, paid), own, after, gamma, lam)
            for reward, paid, own, after in rows
        ]
        torch.testing.assert_close(found, spread(expected, rollouts.sampled), rtol=0, atol=1e-10)
