"""Properties of every objective: however rows are spread, on policy, without signal.

Groups differ in size and hold one prompt or two; some tokens were not sampled.
"""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import prompts_of
from torch import Tensor

from lit_rl.kernels.logprobs import entropy
from lit_rl.objectives import Correction, Objective
from lit_rl.objectives.advantages import relative_advantages
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores

LIMIT, VOCABULARY = 6, 3
MANY = settings(deadline=None, max_examples=60)


@st.composite
def objectives(draw, kl=True) -> Objective:
    """Any objective whose options go together."""
    surrogate = draw(st.sampled_from(["clip", "cispo", "sapo", "reinforce"]))
    options: dict = {"surrogate": surrogate}
    if surrogate in ("clip", "cispo"):
        options |= {"clip_low": draw(st.floats(0, 1)), "clip_high": draw(st.floats(0, 4))}
    if surrogate == "clip":
        options["ratio"] = draw(st.sampled_from(["token", "sequence"]))
        if options["ratio"] == "token":
            options["dual_clip"] = draw(st.sampled_from([0.0, options["clip_high"] + 1.5]))
    if surrogate == "sapo":
        options |= {"sapo_positive": draw(st.floats(0.1, 5)), "sapo_negative": draw(st.floats(0.1, 5))}
    kl_in = draw(st.sampled_from(["loss", "reward"])) if kl else "reward"
    return Objective(
        **options,
        off_policy_threshold=draw(st.sampled_from([0.0, 0.01, 0.5])),
        aggregation=draw(st.sampled_from(["token", "sequence", "constant"])),
        kl_estimator=draw(st.sampled_from(["k1", "k2", "k3"])),
        kl_weighted=kl_in == "loss" and draw(st.booleans()),
        kl_in=kl_in,
        correction=draw(st.just(Correction()) | corrections()),
    )


def corrections() -> st.SearchStrategy:
    methods, levels = st.sampled_from(["truncate", "mask"]), st.sampled_from(["token", "sequence"])
    return st.builds(Correction, methods, levels, low=st.floats(0, 1), high=st.floats(1, 5))


@st.composite
def rollouts(draw, least=1) -> Rollouts:
    """Ragged rows in float64, some of them empty or left out of the loss; 0 after a row's end."""
    sizes = draw(st.lists(st.integers(2, 4), min_size=least, max_size=5))
    rows = sum(sizes)
    lengths = torch.tensor(draw(st.lists(st.integers(0, LIMIT), min_size=rows, max_size=rows)))
    lengths[-1] = lengths[-1].clamp(min=1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # The last row of a group may be of a prompt of its own.
    alone = torch.tensor(draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    last = torch.cat([group[1:] != group[:-1], torch.ones(1).bool()])
    prompt = (torch.cat([torch.zeros(1).bool(), last[:-1]]) | (last & alone[group])).cumsum(0)

    def table(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(mask.shape, generator=generator, dtype=torch.float64)) * mask

    return Rollouts(
        prompts_of(*[[4]] * (int(prompt.max()) + 1)),
        prompt=prompt,
        group=group,
        sampled=mask & (table(0, 1) > 0.2) if draw(st.booleans()) else mask,
        completion_ids=torch.randint(VOCABULARY, mask.shape, generator=generator) * mask,
        lengths=lengths,
        truncated=torch.zeros(rows, dtype=torch.bool),
        logprobs=table(-2, -0.1),
        entropies=table(0, 1),
        temperature=torch.ones(rows, dtype=torch.float64),
        rewards=torch.tensor(draw(st.lists(st.floats(-3, 3), min_size=rows, max_size=rows)), dtype=torch.float64),
        in_loss=torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows))),
        advantages=table(-2, 2).round(decimals=draw(st.integers(0, 3))),
        old_logprobs=table(-2, -0.1) if draw(st.booleans()) else None,
        ref_logprobs=table(-2, -0.1) if draw(st.booleans()) else None,
        gradient_mask=(table(0, 1) > 0.5) if draw(st.booleans()) else None,
    )


def twins(rows: Rollouts, name: str | None) -> Rollouts:
    """Every row twice; the two first differ in one field."""
    made = rows._rows(torch.arange(len(rows)).repeat_interleave(2), rows.prompts)
    if name and made.has(name):
        value = getattr(made, name).clone()
        inside = made.mask[1] if value.dim() == 2 else torch.ones(()).bool()
        value[1] = (~value[1] if value.dtype == torch.bool else value[1] - 0.5) * inside
        setattr(made, name, value)
    return made


class Tabular:
    """A policy with a logit for each prompt, place and token, so that equal rows have one gradient."""

    def __init__(self, rows: Rollouts) -> None:
        generator = torch.Generator().manual_seed(int(rows.lengths.sum()))
        shape = (len(rows.prompts), LIMIT, VOCABULARY)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def score(self, rows: Rollouts) -> TokenScores:
        problem = torch.tensor(rows.prompts.numbers)[rows.prompt] - 100
        mask = rows.sampled
        logp = self.logits.log_softmax(-1)[problem][:, : mask.shape[1]]
        picked = logp.gather(2, rows.completion_ids[:, : logp.shape[1], None])[..., 0]
        return TokenScores(picked * mask, entropy(logp) * mask, mask)


def shares(o: Objective, rows: Rollouts, step: Rollouts) -> Tensor:
    """Each token's share of the loss of the step that the rows are a part of."""
    tokens, sequences = int(step.loss_mask.sum()), int(counted_sequences(step.loss_mask, o.aggregation).sum())
    return token_weights(rows.loss_mask, o.aggregation, tokens, sequences, LIMIT, torch.float64) * rows.multiplicity[:, None]


def gradient(o: Objective, kl_coef: float, parts: list[Rollouts], step: Rollouts, scale: float = 1.0) -> Tensor:
    """The gradient that the parts of a step add up to."""
    policy = Tabular(step)
    for rows in parts:
        losses = o.token_losses(policy.score(rows), rows, kl_coef).losses
        ((losses * shares(o, rows, step)).sum() * scale).backward()
    return torch.zeros_like(policy.logits) if policy.logits.grad is None else policy.logits.grad


def assert_close(a: Tensor, b: Tensor) -> None:
    assert bool(a.isfinite().all())
    assert float((a - b).norm()) <= 1e-10 * max(1.0, float(b.norm()))


KL_COEFS = st.sampled_from([0.0, 0.3])


# --- however rows are spread -------------------------------------------------------------------------------------


@MANY
@given(objectives(), KL_COEFS, rollouts(), st.data())
def test_the_gradient_does_not_depend_on_how_groups_are_dealt_to_micro_batches(o, kl_coef, rows, data):
    groups = data.draw(st.permutations(range(rows.num_groups)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(groups)))) | {0, len(groups)})
    parts = [rows.select(list(groups[a:b])) for a, b in pairwise(cuts)]
    assert_close(gradient(o, kl_coef, parts, rows), gradient(o, kl_coef, [rows], rows))


@MANY
@given(objectives(), KL_COEFS, rollouts(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.data())
def test_the_gradient_does_not_depend_on_the_ranks_that_share_the_groups(o, kl_coef, rows, ranks, accumulate, data):
    """Lightning divides by the micro-batches and takes the mean over ranks, which the stream's scale undoes."""
    groups = data.draw(st.permutations(range(rows.num_groups)))
    total = torch.zeros(())
    for rank in range(ranks):
        own = groups[rank::ranks]
        parts = [rows.select(list(part)) for part in (own[n::accumulate] for n in range(accumulate)) if part]
        total = total + gradient(o, kl_coef, parts, rows, scale=float(accumulate * ranks)) / accumulate
    assert_close(total / ranks, gradient(o, kl_coef, [rows], rows))


@MANY
@given(objectives(), KL_COEFS, rollouts(), st.integers(1, 3), st.floats(-3, 3))
def test_the_gradient_does_not_depend_on_padding(o, kl_coef, rows, columns, content):
    padded, width = rows.to("cpu"), rows.mask.shape[1]
    for name, value in rows.tensors.items():
        if value.dim() == 2:
            behind = torch.full((len(rows), columns), 0.0 if name == "sampled" else content).to(value.dtype)
            setattr(padded, name, torch.cat([value, behind], dim=1))
    padded.completion_ids = padded.completion_ids.clamp(0, VOCABULARY - 1)
    policy = Tabular(rows)
    policy.logits = torch.nn.functional.pad(policy.logits.detach(), (0, 0, 0, columns)).requires_grad_()
    losses = o.token_losses(policy.score(padded), padded, kl_coef).losses
    (losses * shares(o, padded, rows)).sum().backward()
    assert_close(policy.logits.grad[:, :LIMIT], gradient(o, kl_coef, [rows], rows))
    assert width + columns == losses.shape[1]


DIFFERING = [None, "logprobs", "advantages", "old_logprobs", "ref_logprobs", "gradient_mask", "in_loss", "sampled"]


@settings(deadline=None, max_examples=120)
@given(objectives(), KL_COEFS, rollouts(), st.sampled_from(DIFFERING))
def test_the_gradient_does_not_depend_on_merging_equal_rows(o, kl_coef, rows, name):
    rows = twins(rows, name)
    merged = rows.merge_duplicates()
    assert len(merged) < len(rows)
    assert_close(gradient(o, kl_coef, [merged], rows), gradient(o, kl_coef, [rows], rows))


# --- on policy ---------------------------------------------------------------------------------------------------


def by_logprobs(o: Objective, rows: Rollouts, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a step without KL and entropy terms, and its gradient by the log-probabilities."""
    leaf = logprobs.clone().requires_grad_()
    losses = o.token_losses(TokenScores(leaf, rows.entropies, rows.mask), rows, 0.0).losses
    loss = (losses * shares(o, rows, rows)).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@MANY
@given(objectives(kl=False), rollouts())
def test_every_surrogate_is_the_plain_policy_gradient_on_policy(o, rows):
    if rows.has("old_logprobs"):
        rows.old_logprobs = rows.logprobs
    kept = rows.gradient_mask if rows.has("gradient_mask") else torch.ones_like(rows.mask)
    assert_close(by_logprobs(o, rows, rows.logprobs)[1], -rows.advantages * shares(o, rows, rows) * kept)


@MANY
@given(objectives(kl=False), rollouts(), st.sampled_from(["truncate", "mask"]))
def test_a_correction_between_equal_policies_changes_no_bit(o, rows, method):
    """The learner computes what the sampler computed; it has taken steps since, or has not."""
    now = rows.logprobs
    if rows.has("old_logprobs"):
        now, rows.old_logprobs = rows.old_logprobs, rows.logprobs
    c = Correction(method, o.correction.level, o.correction.low, o.correction.high)
    plain, corrected = (Objective(**{**vars(o), "correction": correction}) for correction in (Correction(), c))
    loss, slope = by_logprobs(plain, rows, now)
    same_loss, same_slope = by_logprobs(corrected, rows, now)
    assert torch.equal(loss, same_loss)
    assert torch.equal(slope, same_slope)


# --- without signal ----------------------------------------------------------------------------------------------


@MANY
@given(
    objectives(kl=False),
    rollouts(least=2),
    st.sampled_from(["group", "leave_one_out"]),
    st.sampled_from(["group", "batch", "none"]),
    st.floats(-1e3, 1e3),
)
def test_a_group_of_equal_rewards_has_no_gradient_at_all(o, rows, baseline, scale, reward):
    equal = rows.group == 0
    rows.rewards = rows.rewards.masked_fill(equal, reward)
    nothing = torch.zeros_like(rows.logprobs)
    compared = relative_advantages(rows, nothing, baseline, scale, lambda each: each, lambda each: each)
    rows.advantages = compared * rows.loss_mask
    _, slope = by_logprobs(o, rows, rows.logprobs + torch.linspace(-1, 1, rows.mask.shape[1]))
    assert not slope[equal].any()
