"""GRPO's options in real runs: what stands around the objective, and what each of them does to gradient and log."""

import math

import pytest
import slow_reference as slow
import torch
from conftest import tiny_spec
from grpo_runs import LIMIT, MOVING, SHARES, HalfLength, assert_same, policy_gradient, slow_rows, watched

from lit_rl.algorithms import GRPO
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler

# --- advantages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("baseline", "scale"), [("leave_one_out", "batch"), ("batch", "batch")])
def test_a_step_is_taken_on_the_advantages_of_the_slow_reference(tmp_path, baseline, scale):
    module, watch = watched(tmp_path, dtype="float64", baseline=baseline, advantage_scale=scale)
    rollouts = watch.rollouts[0]
    rows = slow_rows(rollouts)
    nothing = [[0.0] * len(row.sampler) for row in rows]
    found = slow.token_advantages(baseline, scale, 4, rollouts.rewards.tolist(), nothing, rollouts.in_loss.tolist())
    for row, advantages in zip(rows, found, strict=True):
        assert row.advantages == pytest.approx(advantages, abs=1e-5)
    assert_same(watch.gradients[0], policy_gradient(module, rollouts, rows), SHARES)


@pytest.mark.parametrize(("baseline", "estimator"), [("group", "k1"), ("batch", "k3")])
def test_the_kl_in_the_reward_is_taken_off_at_each_token(tmp_path, baseline, estimator):
    options = {"baseline": baseline, "advantage_scale": "none", "optimizer": MOVING, "kl_coef": 0.5}
    _, watch = watched(tmp_path, steps=4, objective=Objective(kl_in="reward", kl_estimator=estimator), **options)
    rollouts = watch.rollouts[-1]
    penalties = [
        [0.5 * slow.kl(estimator, p, float(q)).item() for p, q in zip(*row, strict=True)]
        for row in (
            (rollouts.logprobs[n, :length], rollouts.ref_logprobs[n, :length])
            for n, length in enumerate(rollouts.lengths.tolist())
        )
    ]
    assert max(abs(penalty) for row in penalties for penalty in row) > 0.01
    rewards, counted = rollouts.rewards.tolist(), rollouts.in_loss.tolist()
    found = slow.token_advantages(baseline, "none", 4, rewards, penalties, counted)
    for row, advantages in zip(slow_rows(rollouts), found, strict=True):
        assert row.advantages == pytest.approx(advantages, abs=1e-5)


def test_the_kl_in_the_reward_is_logged_and_has_no_gradient(tmp_path):
    options = {"optimizer": MOVING, "dtype": "float64"}
    _, plain = watched(tmp_path, **options)
    _, watch = watched(tmp_path, steps=4, kl_coef=0.5, objective=Objective(kl_in="reward"), **options)
    assert all(metrics["kl"] >= 0 for metrics in watch.metrics)
    assert watch.metrics[-1]["kl"] > 1e-3
    # At the first step the policy is the reference: without a term in the loss nothing is left of the KL.
    assert_same(watch.gradients[0], plain.gradients[0], 1e-4)


# --- which tokens carry a gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["sequence", "constant"])
def test_masked_rows_leave_the_gradient_of_the_others_alone(tmp_path, aggregation):
    options = {"overlong": Overlong("mask"), "objective": Objective(aggregation=aggregation)}
    module, watch = watched(tmp_path, dtype="float64", sampler=Sampler(LIMIT, temperature=2.0), **options)
    rollouts = watch.rollouts[0]
    kept = (~rollouts.truncated).nonzero()[:, 0]
    assert 0 < len(kept) < len(rollouts)
    alone = rollouts._rows(kept, rollouts.prompts)
    expected = policy_gradient(module, alone, slow_rows(alone))
    if aggregation == "constant":  # its denominator is: it counts the rows that were left out
        expected *= len(kept) / len(rollouts)
    assert_same(watch.gradients[0], expected, SHARES)


class Letters(Reward):
    """A reward that differs between most texts of one token."""

    def score(self, rollouts):
        return torch.tensor([sum(map(ord, text)) % 3 for text in rollouts.texts], dtype=torch.float32)


def test_equal_completions_all_count(tmp_path):
    options = {"group_size": 16, "reward": Letters(), "objective": Objective(aggregation="sequence")}
    module, watch = watched(tmp_path, dtype="float64", sampler=Sampler(1), **options)
    rollouts = watch.rollouts[0]
    assert len(rollouts.merge_duplicates()) < len(rollouts)
    assert_same(watch.gradients[0], policy_gradient(module, rollouts, slow_rows(rollouts)), SHARES)


def test_groups_without_signal_leave_the_gradient_of_the_others_alone(tmp_path):
    module, watch = watched(tmp_path, dtype="float64", reward=HalfLength())
    rollouts = watch.rollouts[0]
    assert_same(watch.gradients[0], policy_gradient(module, rollouts, slow_rows(rollouts)), SHARES)


def test_the_penalty_of_long_completions_is_logged_and_taken_off_the_reward(tmp_path):
    _, watch = watched(tmp_path, overlong=Overlong("penalize", 0.5))
    metrics, lengths = watch.metrics[0], watch.rollouts[0].lengths.tolist()
    penalty = -sum(max(0.0, length - LIMIT / 2) / (LIMIT / 2) for length in lengths) / len(lengths)
    assert penalty < 0
    assert metrics["rewards/overlong/mean"] == pytest.approx(penalty, rel=1e-6)
    assert metrics["reward"] == pytest.approx(metrics["rewards/length/mean"] + penalty, rel=1e-6)


def test_the_tokens_of_highest_entropy_alone_carry_the_policy_gradient(tmp_path):
    share = 0.2
    module, watch = watched(tmp_path, dtype="float64", objective=Objective(top_entropy=share))
    rollouts = watch.rollouts[0]
    entropies = rollouts.entropies[rollouts.mask].tolist()
    kept = sorted(entropies, reverse=True)[: round(share * len(entropies))]
    rows = slow_rows(rollouts)
    for row, entropies in zip(rows, rollouts.entropies.tolist(), strict=True):
        row.gradient_mask = [entropy >= kept[-1] for entropy in entropies[: len(row.sampler)]]
    assert len(kept) <= sum(sum(row.gradient_mask) for row in rows) < 1.2 * len(kept)  # ties
    assert_same(watch.gradients[0], policy_gradient(module, rollouts, rows), SHARES)


# --- between sampler and learner ---------------------------------------------------------------------------------

RATIO = "sampling/importance_sampling_ratio"


def test_the_learners_own_logprobs_are_the_old_ones(tmp_path):
    own = []

    def score(module, rollouts, number):
        with torch.no_grad():
            own.append(module.policy.score(rollouts).logprobs)

    objective = Objective(correction=Correction("truncate"))
    _, watch = watched(tmp_path, score, steps=4, minibatches=2, accumulate=2, optimizer=MOVING, objective=objective)
    assert len(own) == 2
    for expected, rollouts in zip(own, watch.rollouts, strict=True):
        assert torch.allclose(rollouts.old_logprobs, expected, atol=1e-5)
        assert not rollouts.old_logprobs[~rollouts.mask].any()


@pytest.mark.parametrize(("correction", "minibatches"), [(Correction("truncate"), 1), (Correction("mask", "sequence"), 2)])
def test_an_honest_sampler_has_ratios_of_one_while_the_policy_moves(tmp_path, correction, minibatches):
    options = {"minibatches": minibatches, "optimizer": MOVING, "objective": Objective(correction=correction)}
    _, watch = watched(tmp_path, steps=4, **options)
    for metrics in watch.metrics:
        assert [metrics[f"{RATIO}/{name}"] for name in ("min", "mean", "max")] == pytest.approx([1, 1, 1], abs=1e-3)
        assert 0 <= metrics["sampling/mismatch_kl"] < 1e-6
    if minibatches == 2:
        assert watch.metrics[1]["sampling/sampling_logp_difference/mean"] > 1e-3


def test_a_single_step_on_policy_scores_no_rollout_twice(tmp_path):
    corrected = Objective(correction=Correction("truncate"))
    for minibatches in (1, 2):
        _, watch = watched(tmp_path, minibatches=minibatches, objective=corrected)
        assert watch.rollouts[0].has("old_logprobs") is (minibatches > 1)


def shift(module, rollouts, number):
    """A sampler that sees a tenth of a nat less in each token, from the second rollout on."""
    if number:
        rollouts.logprobs = rollouts.logprobs - 0.1 * rollouts.mask


@pytest.mark.parametrize(("level", "minibatches"), [("token", 1), ("sequence", 2)])
def test_the_log_shows_a_sampler_that_says_something_else(tmp_path, level, minibatches):
    options = {"minibatches": minibatches, "objective": Objective(correction=Correction("truncate", level, high=10))}
    _, watch = watched(tmp_path, shift, steps=2 * minibatches, **options)
    rollouts, metrics = watch.rollouts[-1], watch.metrics[-1]
    lengths = rollouts.lengths.tolist()
    if minibatches == 2:
        lengths = lengths[len(lengths) // 2 :]
    if level == "sequence":
        ratios = [math.exp(0.1 * n) for n in lengths]
        mean = sum(n * ratio for n, ratio in zip(lengths, ratios, strict=True)) / sum(lengths)
    else:
        ratios, mean = [math.exp(0.1)], math.exp(0.1)
    expected = pytest.approx([min(ratios), mean, max(ratios)], rel=1e-3)
    assert [metrics[f"{RATIO}/{name}"] for name in ("min", "mean", "max")] == expected
    assert metrics["sampling/mismatch_kl"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.1, rel=1e-3)


def test_groups_without_signal_do_not_dilute_what_the_log_says_of_the_sampler(tmp_path):
    options = {"objective": Objective(correction=Correction("truncate")), "reward": HalfLength()}
    _, watch = watched(tmp_path, shift, steps=2, **options)
    assert watch.metrics[-1]["sampling/mismatch_kl"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert watch.metrics[-1][f"{RATIO}/mean"] == pytest.approx(math.exp(0.1), rel=1e-3)


def test_groups_without_signal_do_not_dilute_the_kl_in_the_log(tmp_path):
    """If negative advantages are dropped, groups below the batch's mean have none."""
    options = {"baseline": "batch", "advantage_scale": "none", "negative_weight": 0.0, "kl_coef": 1e-3, "optimizer": MOVING}
    _, watch = watched(tmp_path, steps=4, objective=Objective(kl_in="reward"), **options)
    rollouts = watch.rollouts[-1]
    assert not (rollouts.advantages != 0).any(1).view(-1, 4).any(1).all()
    kl = [
        slow.kl("k3", p, float(q)).item()
        for row, references in zip(rollouts.logprobs, rollouts.ref_logprobs, strict=True)
        for p, q in zip(row, references, strict=True)
    ]
    assert watch.metrics[-1]["kl"] == pytest.approx(sum(kl) / int(rollouts.lengths.sum()), rel=1e-3)


def test_a_weight_beyond_its_bound_is_cut(tmp_path):
    correction = Correction("truncate", high=1.05)
    module, watch = watched(tmp_path, shift, steps=2, dtype="float64", objective=Objective(correction=correction))
    rollouts = watch.rollouts[-1]
    rows = slow_rows(rollouts)
    for row in rows:
        row.sampler = [value + 0.1 for value in row.sampler]
    assert_same(watch.gradients[-1], 1.05 * policy_gradient(module, rollouts, rows), SHARES)
    assert watch.metrics[-1][f"{RATIO}/max"] == pytest.approx(1.05)


def test_a_sampler_that_is_wrong_from_the_start_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"learner and sampler differ by 0\.1 nats a token"):
        watched(tmp_path, lambda module, rollouts, number: shift(module, rollouts, 1))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_entropy_bonus_keeps_its_coefficient_under_every_aggregation(tmp_path, aggregation, accumulate):
    """Without a reward that differs the loss is -0.5 times the mean entropy of the tokens."""
    options = {"reward": Constant(), "objective": Objective(aggregation=aggregation), "entropy_coef": 0.5}
    _, watch = watched(tmp_path, accumulate=accumulate, **options)
    metrics = watch.metrics[0]
    assert metrics["loss"] == pytest.approx(-0.5 * metrics["entropy"], rel=1e-5)
    assert metrics["entropy"] > 1


class Constant(Reward):
    """The same reward for every completion."""

    def score(self, rollouts):
        return torch.ones(len(rollouts))


@pytest.mark.parametrize(("aggregation", "said"), [("token", True), ("sequence", False)])
def test_ratios_of_sequences_with_a_mean_over_tokens_are_pointed_out(caplog, aggregation, said):
    with caplog.at_level("INFO"):
        GRPO(tiny_spec(), objective=Objective(ratio="sequence", aggregation=aggregation))
    assert ("GSPO (arXiv 2507.18071) has aggregation sequence" in caplog.text) == said
