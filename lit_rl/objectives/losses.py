"""Surrogates of policy-gradient objectives, one loss per token. Pure functions on tensors.

Shapes: N rows, T tokens. ``advantages`` are (N, T), or (N, 1) if a row has one advantage. Losses of tokens that were not
sampled are finite numbers, which the weights of `lit_rl.objectives.aggregation` leave out. `Objective` puts the functions
together.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp, which then stays finite in float32."""


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """``rho_t = p(y_t) / p_old(y_t)``, the importance ratio of each token (PPO, arXiv 1707.06347, section 3).

    Args:
        logprobs: (N, T) under the policy that learns, with gradient.
        old_logprobs: (N, T) under the old policy.

    Returns:
        (N, T).
    """
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``s = exp(mean_t (log p(y_t) - log p_old(y_t)))`` of each row, at every token (GSPO, arXiv 2507.18071, eqs. 7 and 14).

    Its gradient at a token is ``s grad log p(y_t)``. Summed over a row this is the gradient of GSPO, or of GSPO-token if tokens
    have advantages, or shares in the loss, of their own.

    Args:
        logprobs: (N, T) under the policy that learns, with gradient.
        old_logprobs: (N, T) under the old policy.
        mask: (N, T) bool, True at sampled tokens.

    Returns:
        (N, T), one value per row.
    """
    log_ratio = logprobs - old_logprobs
    # Detached: the gradient comes in below, at each token, so that weights per token still apply to it.
    mean = (log_ratio.detach() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    ratio = mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio * (1 + logprobs - logprobs.detach())  # (N, T): the value of `ratio`, with a gradient at each token


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float = 0.0) -> Tensor:
    """``-min(r A, clip(r, 1 - low, 1 + high) A)``: PPO (arXiv 1707.06347, eq. 7), two bounds by DAPO (2503.14476, eq. 10).

    With dual clip ``c`` and A < 0: ``-max(min(r A, clip(r) A), c A)`` (arXiv 1912.09729), so that a ratio far above 1 cannot
    make the loss of a bad token arbitrarily large.

    Args:
        ratio: (N, T) of tokens or sequences.
        advantages: (N, T) or (N, 1).
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.
        dual_clip: c, above 1 + clip_high; 0 = off.

    Returns:
        (N, T) loss per token.
    """
    # The minimum takes the clipped side, without gradient, only if it is worse: a step too far can still be undone.
    gain = (ratio * advantages).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip:
        gain = torch.where(advantages < 0, gain.maximum(dual_clip * advantages), gain)
    return -gain


def cispo_loss(ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """``-sg(clip(r, 1 - low, 1 + high)) A log p``: clips the weight, never the gradient (CISPO, arXiv 2506.13585, eqs. 4, 5).

    Args:
        ratio: (N, T) of tokens.
        logprobs: (N, T), with gradient.
        advantages: (N, T) or (N, 1).
        clip_low: how far the weight may fall below 1; 1 or more sets no lower bound, as in the paper.
        clip_high: how far the weight may rise above 1.

    Returns:
        (N, T) loss per token.
    """
    return -ratio.clamp(1 - clip_low, 1 + clip_high).detach() * advantages * logprobs


def sapo_loss(ratio: Tensor, advantages: Tensor, positive: float, negative: float) -> Tensor:
    """``-f(r) A`` with the soft gate ``f(r) = 4 / tau sigmoid(tau (r - 1))`` in place of a clip (SAPO, arXiv 2511.20347).

    The slope of f is 1 at r = 1 and falls off on both sides, faster with a larger tau.

    Args:
        ratio: (N, T) of tokens.
        advantages: (N, T) or (N, 1).
        positive: tau for A > 0.
        negative: tau for A <= 0.

    Returns:
        (N, T) loss per token.
    """
    # Tensors of the ratio's dtype: from bare numbers `where` makes float32.
    tau = torch.where(advantages > 0, ratio.new_tensor(positive), ratio.new_tensor(negative))
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """``-A log p``: the plain policy gradient (Williams 1992), right only on the policy that sampled.

    Args:
        logprobs: (N, T), with gradient.
        advantages: (N, T) or (N, 1).

    Returns:
        (N, T) loss per token.
    """
    return -advantages * logprobs


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2``: the critic moves little on one rollout.

    Clipped values are not in the paper of PPO but in its authors' code; arXiv 2005.12729, section 3, describes them.

    Args:
        values: (N, T) of the critic that learns, with gradient.
        old_values: (N, T) of the critic before its first step on the rollout.
        returns: (N, T), target of the critic.
        clip: c; 0 = off.

    Returns:
        (N, T) loss per token, and (N, T) bool, True if clipping stopped the gradient.
    """
    # The maximum is the pessimistic bound, as the minimum of gains is for the policy.
    plain = (values - returns).square()
    if not clip:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return plain.maximum(clipped) / 2, clipped > plain


def off_policy_mask(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, advantages: Tensor, threshold: float) -> Tensor:
    """Mask of bad completions that the policy has moved away from (DeepSeek-V3.2, arXiv 2512.02556, section 3.1).

    False if ``A < 0`` and ``mean_t (log p_sampler(y_t) - log p(y_t)) > threshold``.

    Args:
        logprobs: (N, T) under the policy that learns.
        sampled_logprobs: (N, T) as recorded by the sampler.
        mask: (N, T) bool, True at sampled tokens.
        advantages: (N, T) or (N, 1).
        threshold: nats per token.

    Returns:
        (N, T) or (N, 1) bool, like ``advantages``; True keeps the loss.
    """
    # From the sampler even if a correction makes the learner the old policy: their mismatch is drift too.
    drift = (sampled_logprobs - logprobs.detach()) * mask
    mean = drift.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return (advantages >= 0) | (mean <= threshold)


def importance_weights(
    logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, level: str, method: str, low: float, high: float
) -> Tensor:
    """``w = p_learner / p_sampler``: importance weights for a sampler that computes otherwise than the learner.

    Each token has a weight, or each sequence the product over its tokens. ``truncate`` cuts weights to [low, high] (TIS, Yao et
    al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"), ``mask`` sets weights outside to 0
    (as IcePop does, arXiv 2510.18855).

    Args:
        logprobs: (N, T) of the learner before its first step.
        sampled_logprobs: (N, T) as recorded by the sampler.
        mask: (N, T) bool, True at sampled tokens.
        level: ``token`` or ``sequence``.
        method: ``truncate`` or ``mask``.
        low: smallest weight that stays.
        high: largest weight that stays.

    Returns:
        (N, T) without gradient; 1 outside the mask at token level.
    """
    difference = (logprobs.detach() - sampled_logprobs) * mask
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand(mask.shape)  # (N, T), one value per row
    weights = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if method == "truncate":
        return weights.clamp(low, high)
    return weights.masked_fill((weights < low) | (weights > high), 0.0)
