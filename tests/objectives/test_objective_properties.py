"""What holds for every objective: however rows are spread, on policy, without signal, between equal policies."""

from itertools import pairwise

import pytest
import torch
from conftest import quiet_trainer, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import prompts_of
from torch import Tensor

from lit_rl.algorithms import GRPO
from lit_rl.objectives import Correction, Objective
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.objectives.kl import kl_estimate
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores, entropy

LIMIT, VOCABULARY = 6, 3
MANY = settings(deadline=None, max_examples=200)


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
    """Ragged rows in float64, some of them empty or left out of the loss; 0 behind a row's end."""
    groups, size = draw(st.integers(least, 5)), draw(st.integers(2, 4))
    rows = groups * size
    lengths = torch.tensor(draw(st.lists(st.integers(0, LIMIT), min_size=rows, max_size=rows)))
    lengths[-1] = lengths[-1].clamp(min=1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def table(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(mask.shape, generator=generator, dtype=torch.float64)) * mask

    return Rollouts(
        prompts_of(*[[4]] * groups),
        size,
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
    """The same with every group's first row twice, but for one thing in which they differ."""
    place = torch.arange(len(rows))
    made = rows._rows(place - (place % rows.rows_per_prompt == 1).long(), rows.prompts)
    value = getattr(rows, name) if name else None
    if value is not None:
        setattr(made, name, value if name == "in_loss" else value[:, : made.mask.shape[1]] * made.mask)
    return made


class Tabular:
    """A policy with a logit for each prompt, place and token, so that equal rows share what they learn."""

    def __init__(self, rows: Rollouts) -> None:
        generator = torch.Generator().manual_seed(int(rows.lengths.sum()))
        shape = (len(rows.prompts), LIMIT, VOCABULARY)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def score(self, rows: Rollouts) -> TokenScores:
        problem = torch.tensor(rows.prompts.numbers)[rows.prompt] - 100
        mask = rows.mask
        logp = self.logits.log_softmax(-1)[problem][:, : mask.shape[1]]
        picked = logp.gather(2, rows.completion_ids[:, : logp.shape[1], None])[..., 0]
        return TokenScores(picked * mask, entropy(logp) * mask, mask)


def shares(o: Objective, rows: Rollouts, step: Rollouts) -> Tensor:
    """Each token's share of the loss of the step that the rows are a part of."""
    tokens, sequences = int(step.loss_mask.sum()), int(counted_sequences(step.loss_mask, o.aggregation).sum())
    return token_weights(rows.loss_mask, o.aggregation, tokens, sequences, LIMIT, torch.float64) * rows.multiplicity[:, None]


def gradient(o: Objective, coefs: tuple[float, float], parts: list[Rollouts], step: Rollouts, scale: float = 1.0) -> Tensor:
    """The gradient that the parts of a step add up to."""
    policy = Tabular(step)
    for rows in parts:
        losses = o.token_losses(policy.score(rows), rows, *coefs).losses
        ((losses * shares(o, rows, step)).sum() * scale).backward()
    return torch.zeros_like(policy.logits) if policy.logits.grad is None else policy.logits.grad


def assert_close(a: Tensor, b: Tensor) -> None:
    assert bool(a.isfinite().all())
    assert float((a - b).norm()) <= 1e-10 * max(1.0, float(b.norm()))


COEFS = st.tuples(st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.2]))


# --- however rows are spread -------------------------------------------------------------------------------------


@MANY
@given(objectives(), COEFS, rollouts(), st.data())
def test_the_gradient_does_not_depend_on_how_groups_are_dealt_to_micro_batches(o, coefs, rows, data):
    prompts = data.draw(st.permutations(range(len(rows.prompts))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(prompts)))) | {0, len(prompts)})
    parts = [rows.select(list(prompts[a:b])) for a, b in pairwise(cuts)]
    assert_close(gradient(o, coefs, parts, rows), gradient(o, coefs, [rows], rows))


@MANY
@given(objectives(), COEFS, rollouts(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.data())
def test_the_gradient_does_not_depend_on_the_ranks_that_share_the_groups(o, coefs, rows, ranks, accumulate, data):
    """Lightning divides by the micro-batches and takes the mean over ranks, which the stream's scale undoes."""
    prompts = data.draw(st.permutations(range(len(rows.prompts))))
    total = torch.zeros(())
    for rank in range(ranks):
        own = prompts[rank::ranks]
        parts = [rows.select(list(part)) for part in (own[n::accumulate] for n in range(accumulate)) if part]
        total = total + gradient(o, coefs, parts, rows, scale=float(accumulate * ranks)) / accumulate
    assert_close(total / ranks, gradient(o, coefs, [rows], rows))


@MANY
@given(objectives(), COEFS, rollouts(), st.integers(1, 3), st.floats(-3, 3))
def test_the_gradient_does_not_depend_on_padding(o, coefs, rows, columns, content):
    padded, width = rows.select(list(range(len(rows.prompts)))), rows.mask.shape[1]
    for name in [name for name in Rollouts._TENSORS if name not in Rollouts._BY_ROW]:
        value = getattr(rows, name)
        if value is not None:
            setattr(padded, name, torch.cat([value, torch.full((len(rows), columns), content).to(value.dtype)], dim=1))
    padded.completion_ids = padded.completion_ids.clamp(0, VOCABULARY - 1)
    policy = Tabular(rows)
    policy.logits = torch.nn.functional.pad(policy.logits.detach(), (0, 0, 0, columns)).requires_grad_()
    losses = o.token_losses(policy.score(padded), padded, *coefs).losses
    (losses * shares(o, padded, rows)).sum().backward()
    assert_close(policy.logits.grad[:, :LIMIT], gradient(o, coefs, [rows], rows))
    assert width + columns == losses.shape[1]


@pytest.mark.parametrize("name", [None, "logprobs", "advantages", "old_logprobs", "ref_logprobs", "gradient_mask", "in_loss"])
@MANY
@given(objectives(), COEFS, rollouts())
def test_the_gradient_does_not_depend_on_merging_equal_rows(name, o, coefs, rows):
    rows = twins(rows, name)
    assert_close(gradient(o, coefs, [rows.merge_duplicates()], rows), gradient(o, coefs, [rows], rows))


# --- on policy ---------------------------------------------------------------------------------------------------


def by_logprobs(o: Objective, rows: Rollouts, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a step without KL and entropy terms, and its gradient by the log-probabilities."""
    leaf = logprobs.clone().requires_grad_()
    losses = o.token_losses(TokenScores(leaf, rows.entropies, rows.mask), rows, 0.0, 0.0).losses
    loss = (losses * shares(o, rows, rows)).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@MANY
@given(objectives(kl=False), rollouts())
def test_every_surrogate_is_the_plain_policy_gradient_on_policy(o, rows):
    rows.old_logprobs = None if rows.old_logprobs is None else rows.logprobs
    kept = torch.ones_like(rows.mask) if rows.gradient_mask is None else rows.gradient_mask
    assert_close(by_logprobs(o, rows, rows.logprobs)[1], -rows.advantages * shares(o, rows, rows) * kept)


@MANY
@given(objectives(kl=False), rollouts(), st.sampled_from(["truncate", "mask"]), st.booleans())
def test_a_correction_between_equal_policies_changes_no_bit(o, rows, method, stepped):
    """The learner computes what the sampler did; it has taken steps since, or has not."""
    now = rows.old_logprobs if stepped and rows.old_logprobs is not None else rows.logprobs
    rows.old_logprobs = rows.logprobs if now is not rows.logprobs else None
    c = Correction(method, o.correction.level, o.correction.low, o.correction.high)
    plain, corrected = (Objective(**{**vars(o), "correction": correction}) for correction in (Correction(), c))
    loss, slope = by_logprobs(plain, rows, now)
    same_loss, same_slope = by_logprobs(corrected, rows, now)
    assert torch.equal(loss, same_loss)
    assert torch.equal(slope, same_slope)


# --- without signal ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return quiet_trainer(tmp_path_factory.mktemp("run"))


@MANY
@given(
    objectives(kl=False),
    rollouts(least=2),
    st.sampled_from(["group", "leave_one_out"]),
    st.sampled_from(["group", "batch", "none"]),
    st.floats(-1e3, 1e3),
)
def test_a_group_of_equal_rewards_has_no_gradient_at_all(trainer, o, rows, baseline, scale, reward):
    module = GRPO(tiny_spec(), group_size=rows.rows_per_prompt, baseline=baseline, advantage_scale=scale, objective=o)
    module.trainer = trainer
    rows.rewards[: rows.rows_per_prompt] = reward
    rows.ref_logprobs = rows.old_logprobs = None
    module.add_advantages(rows)
    _, slope = by_logprobs(o, rows, rows.logprobs + torch.linspace(-1, 1, rows.mask.shape[1]))
    assert not slope[: rows.rows_per_prompt].any()


# --- between equal policies --------------------------------------------------------------------------------------

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=20).map(
    lambda values: torch.tensor(values, dtype=torch.float64)[None]
)


@MANY
@given(LOGPROBS, st.floats(-30, 30), st.sampled_from(["k2", "k3"]))
def test_k2_and_k3_are_never_negative(logprobs, difference, estimator):
    assert bool((kl_estimate(logprobs, logprobs + difference, estimator) >= 0).all())


@MANY
@given(LOGPROBS, st.sampled_from(["k1", "k2", "k3"]))
def test_the_kl_between_equal_policies_is_zero(logprobs, estimator):
    assert not kl_estimate(logprobs, logprobs.clone(), estimator).any()


@MANY
@given(LOGPROBS, st.floats(1e-6, 30) | st.floats(-30, -1e-6), st.sampled_from(["k2", "k3"]))
def test_the_kl_between_different_policies_is_above_zero(logprobs, difference, estimator):
    assert bool((kl_estimate(logprobs, logprobs + difference, estimator) > 0).all())
