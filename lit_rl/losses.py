"""Losses per token, and the weights that make their sum the loss of the whole optimizer step. Pure functions on tensors.

A loss function returns one value per token (N, T). `token_weights` gives each token its share of one normaliser that was
counted over the whole optimizer step on all ranks; a micro-batch's loss is then a plain weighted sum, and gradients
do not depend on how the batch was cut.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp, which then stays finite in float32."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """``-min(r A, clip(r, 1 - low, 1 + high) A)``: PPO (arXiv 1707.06347, eq. 7), separate bounds by DAPO (2503.14476, eq. 10).

    Args:
        ratio: (N, T) probability of each token under the policy over that under the policy that sampled it.
        advantages: (N, T) or (N, 1).
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.

    Returns:
        (N, T) loss per token.
    """
    return -(ratio * advantages).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL to the reference by the k3 estimator, ``exp(q - p) - (q - p) - 1`` with q the reference (GRPO, 2402.03300, eq. 4).

    Never negative, zero only where both agree.

    Args:
        logprobs: (N, T) under the policy, which sampled the tokens.
        ref_logprobs: (N, T) under the reference.

    Returns:
        (N, T) in nats.
    """
    difference = (ref_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the small values that exp(x) - 1 rounds to below zero.
    return (difference.expm1() - difference).clamp(min=0.0)


def token_weights(mask: Tensor, aggregation: Aggregation, num_tokens: int, num_sequences: int, constant_length: int) -> Tensor:
    """Each token's share of the loss of one optimizer step, counts taken over all its micro-batches on all ranks.

    ``token``: 1 / tokens (DAPO, 2503.14476). ``sequence``: 1 / (sequences * own length) (GRPO, 2402.03300, eq. 3).
    ``constant``: 1 / (sequences * constant length) (Dr. GRPO, 2503.20783).

    Args:
        mask: (N, T) bool, True at tokens that count.
        aggregation: which of the three.
        num_tokens: tokens that count in the step.
        num_sequences: sequences in the step.
        constant_length: the longest possible completion, for ``constant``.

    Returns:
        (N, T) float32; 0 where the mask is False.
    """
    weights = mask.float()
    if aggregation == "token":
        return weights / max(num_tokens, 1)
    if aggregation == "sequence":
        return weights / (mask.sum(1, keepdim=True).clamp(min=1) * num_sequences)
    return weights / (num_sequences * constant_length)
