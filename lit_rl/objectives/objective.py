"""Objective of a policy-gradient step: surrogate, importance ratio and corrections.

    loss_t = w_t m_t L(rho_t, A_t) + kl_coef KL_t

L is the surrogate, rho the importance ratio, A the advantage, w the importance weight between sampler and learner, m the
gradient mask. `docs/objectives.md` lists the published algorithms as values of these options.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_rl.objectives.aggregation import Aggregation
from lit_rl.objectives.kl import KLEstimator, kl_estimate
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
from lit_rl.options import check_choice
from lit_rl.rollouts import Rollouts
from lit_rl.types import TokenScores

Surrogate = Literal["clip", "cispo", "sapo", "reinforce"]
Level = Literal["token", "sequence"]
KLPlace = Literal["loss", "reward"]
CorrectionMethod = Literal["none", "truncate", "mask"]
CHOICES = {
    "surrogate": Surrogate,
    "ratio": Level,
    "aggregation": Aggregation,
    "kl_estimator": KLEstimator,
    "kl_in": KLPlace,
}
GOES_WITH = {
    "clip": "ratio token or sequence, clip_low, clip_high, and with ratio token dual_clip",
    "cispo": "ratio token, clip_low, clip_high",
    "sapo": "ratio token, sapo_positive, sapo_negative",
    "reinforce": "one epoch of one minibatch",
}
"""Options that each surrogate reads, for messages; the others stay at their defaults."""


@dataclass(frozen=True)
class Correction:
    """Importance weights between sampler and learner, if the two compute the same policy differently."""

    method: CorrectionMethod = "none"
    """``none`` takes the sampler for the old policy. Otherwise the learner before its first step is the old policy, and the
    loss is weighted by p_learner / p_sampler: ``truncate`` cuts weights to [low, high], ``mask`` sets weights outside to 0."""
    level: Level = "token"
    """One weight for each token, or for each sequence the product over its tokens."""
    low: float = 0.0
    """Smallest weight that stays, from 0 to 1."""
    high: float = 3.0
    """Largest weight that stays, at least 1."""

    def __post_init__(self) -> None:
        check_choice("correction.method", self.method, CorrectionMethod)
        check_choice("correction.level", self.level, Level)
        if self.method == "none" and (self.level, self.low, self.high) != ("token", 0.0, 3.0):
            raise ValueError("correction.level, low and high go with method truncate or mask; write one of them.")
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(
                f"correction.low is {self.low} and correction.high {self.high}; a weight of 1 must stay: write low from 0 to 1 "
                "and high from 1 on."
            )


class TokenLosses(NamedTuple):
    """Objective at each token."""

    losses: Tensor
    """(N, T), with gradient."""
    shares: dict[str, Tensor]
    """For the log, each (N, T) bool: tokens that an option stopped; never a token of advantage 0."""
    means: dict[str, Tensor]
    """For the log, each (N, T): metrics to average over scored tokens."""
    weights: Tensor | None
    """(N, T) importance weights between sampler and learner, None without correction."""


@dataclass(frozen=True)
class Objective:
    """Loss that an optimizer step descends on."""

    surrogate: Surrogate = "clip"
    """``clip``: PPO (arXiv 1707.06347). ``cispo``: clips the weight, never the gradient (2506.13585). ``sapo``: a soft gate
    instead of a clip (2511.20347). ``reinforce``: -A log p."""
    ratio: Level = "token"
    """Importance ratio of each token, or of each sequence: the geometric mean over its tokens (GSPO, 2507.18071)."""
    clip_low: float = 0.2
    """How far the ratio (cispo: the weight) may fall below 1 before it is clipped."""
    clip_high: float = 0.2
    """How far the ratio (cispo: the weight) may rise above 1 before it is clipped; above clip_low in DAPO (2503.14476)."""
    dual_clip: float = 0.0
    """Ratio above which tokens of negative advantage have no gradient (1912.09729), for example 3; 0 = off."""
    sapo_positive: float = 1.0
    """Temperature of the soft gate for positive advantages."""
    sapo_negative: float = 1.05
    """Temperature of the soft gate for negative advantages."""
    off_policy_threshold: float = 0.0
    """Nats per token: completions of negative advantage that the policy has moved away from by more are left out
    (DeepSeek-V3.2, 2512.02556); 0 = off."""
    aggregation: Aggregation = "token"
    """``token``: mean over all tokens. ``sequence``: mean over each sequence, then over sequences. ``constant``: sum over each
    sequence divided by ``sampler.max_new_tokens``, then mean over sequences."""
    top_entropy: float = 1.0
    """Share of a rollout's tokens that carry the policy gradient, highest entropy first (2506.01939); 1 = all."""
    kl_estimator: KLEstimator = "k3"
    """Estimator of the KL to the reference; ``k1`` in the loss has a gradient of mean zero unless kl_weighted is true."""
    kl_weighted: bool = False
    """Weights the KL by the token ratio; its gradient is then the gradient of KL(policy || reference) (2512.02556)."""
    kl_in: KLPlace = "loss"
    """``loss``: the KL is a term of the loss. ``reward``: the KL is taken off the reward at each token."""
    correction: Correction = Correction()
    """Importance weights between sampler and learner."""

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            check_choice(f"objective.{option}", getattr(self, option), choices)
        self._check_surrogate()
        for option in ("clip_low", "clip_high", "off_policy_threshold", "dual_clip"):
            # `not >=` and not `<`, which lets NaN pass.
            if not getattr(self, option) >= 0:
                raise ValueError(f"objective.{option} is {getattr(self, option)}; write 0 or more.")
        # The gate divides by them.
        if not min(self.sapo_positive, self.sapo_negative) > 0:
            raise ValueError(
                f"objective.sapo_positive is {self.sapo_positive} and sapo_negative {self.sapo_negative}; write more than 0."
            )
        # A smaller bound would cut off losses inside the ordinary clip range.
        if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"objective.dual_clip is {self.dual_clip}; write more than 1 + clip_high = {1 + self.clip_high}.")
        if not 0 < self.top_entropy <= 1:
            raise ValueError(f"objective.top_entropy is {self.top_entropy}; write a share above 0 and up to 1 (all tokens).")
        if self.kl_weighted and self.kl_in == "reward":
            raise ValueError(
                "objective.kl_weighted goes with kl_in loss: in the reward the KL has no gradient to weight; write kl_in: loss "
                "or kl_weighted: false."
            )

    def _check_surrogate(self) -> None:
        reads = {
            "clip": {"ratio", "clip_low", "clip_high"} | ({"dual_clip"} if self.ratio == "token" else set()),
            "cispo": {"clip_low", "clip_high"},
            "sapo": {"sapo_positive", "sapo_negative"},
            "reinforce": set(),
        }
        particular = {"ratio", "clip_low", "clip_high", "dual_clip", "sapo_positive", "sapo_negative"}
        for option in fields(self):
            # An option that nothing reads is refused: silence would let a user believe in it.
            unread = option.name in particular - reads[self.surrogate]
            if unread and getattr(self, option.name) != option.default:
                with_ratio = f" on ratio {self.ratio}" if self.surrogate == "clip" else ""
                together = "; ".join(f"{name}: {options}" for name, options in GOES_WITH.items())
                raise ValueError(
                    f"objective.{option.name} {getattr(self, option.name)} does not go with surrogate {self.surrogate}"
                    f"{with_ratio}. What goes together: {together}."
                )

    def token_losses(self, scores: TokenScores, rows: Rollouts, kl_coef: float) -> TokenLosses:
        """Objective at each sampled token.

        Args:
            scores: scores of the tokens under the policy that learns.
            rows: rollouts with advantages.
            kl_coef: weight of the KL to the reference.
        """
        logprobs, means = scores.logprobs, {}
        old = self._old_logprobs(logprobs, rows)
        # Of tokens even if the surrogate takes ratios of sequences: `kl_weighted` reads it.
        ratio = token_ratio(logprobs, old)
        losses, shares = self._surrogate(logprobs, old, ratio, rows)
        weights = self._correction(old, rows)
        if weights is not None:
            losses = losses * weights
            # The sampler drew the tokens, so it comes first.
            means["sampling/mismatch_kl"] = kl_estimate(rows.logprobs, old)
        if self.off_policy_threshold:
            keep = off_policy_mask(logprobs, rows.logprobs, rows.sampled, rows.advantages, self.off_policy_threshold)
            losses = losses * keep
            shares["off_policy_masked"] = ~keep
        if rows.has("gradient_mask"):
            losses = losses * rows.gradient_mask
        # After the masks and weights above: they are about the policy gradient, while the KL holds at every token.
        if rows.has("ref_logprobs") and self.kl_in == "loss":
            kl = kl_estimate(logprobs, rows.ref_logprobs, self.kl_estimator)
            losses = losses + kl_coef * (kl * ratio if self.kl_weighted else kl)
            # k3 whatever the estimator of the loss, so that runs compare.
            means["kl"] = kl_estimate(logprobs.detach(), rows.ref_logprobs)
        return TokenLosses(losses, shares, means, weights)

    def _old_logprobs(self, logprobs: Tensor, rows: Rollouts) -> Tensor:
        """(N, T) log-probabilities under the old policy, which the ratio compares with."""
        if self.correction.method == "none":
            return rows.logprobs
        # Unfilled if a rollout has one step: the learner is then its own old policy, and a pass is saved.
        return rows.old_logprobs if rows.has("old_logprobs") else logprobs.detach()

    def _correction(self, old: Tensor, rows: Rollouts) -> Tensor | None:
        c = self.correction
        if c.method == "none":
            return None
        return importance_weights(old, rows.logprobs, rows.sampled, c.level, c.method, c.low, c.high)

    def _surrogate(self, logprobs: Tensor, old: Tensor, ratio: Tensor, rows: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        advantages = rows.advantages
        if self.surrogate == "reinforce":
            return reinforce_loss(logprobs, advantages), {}
        if self.surrogate == "sapo":
            return sapo_loss(ratio, advantages, self.sapo_positive, self.sapo_negative), {}
        if self.ratio == "sequence":
            ratio = sequence_ratio(logprobs, old, rows.sampled)
        # Positive advantages only: at a negative one `minimum` keeps the gradient, which moves the ratio back.
        high = (ratio > 1 + self.clip_high) & (advantages > 0)
        if self.surrogate == "cispo":
            losses = cispo_loss(ratio, logprobs, advantages, self.clip_low, self.clip_high)
            return losses, {"clip_ratio/high_mean": high}
        low = (ratio < 1 - self.clip_low) & (advantages < 0)
        losses = clipped_surrogate(ratio, advantages, self.clip_low, self.clip_high, self.dual_clip)
        return losses, {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


def top_entropy_mask(entropies: Tensor, mask: Tensor, everyone: Tensor, share: float) -> Tensor:
    """Gradient mask of the ``share`` of tokens with the highest entropy (arXiv 2506.01939, eq. 5).

    Args:
        entropies: (N, T) nats.
        mask: (N, T) bool, True at tokens that count.
        everyone: (M) entropies of the tokens that count on all ranks.
        share: above 0 and up to 1.

    Returns:
        (N, T) bool; all tokens at the threshold are True.
    """
    if len(everyone) == 0:
        return mask
    kept = max(1, round(share * len(everyone)))
    # Not `torch.quantile`, which refuses more than 16 million values.
    threshold = torch.topk(everyone, kept).values[-1]
    return mask & (entropies >= threshold)
