"""KL from the policy to a reference, estimated from log-probabilities of sampled tokens. Pure functions.

For a token drawn from the policy p, with ``x = log q - log p`` and q the reference (Schulman 2020, "Approximating KL
divergence"): k1 = -x, k2 = x^2 / 2, k3 = e^x - 1 - x. As a loss on policy, k1 has a gradient of mean zero, k2 the gradient
of KL(p || q), k3 the gradient of KL(q || p). Weighted by the ratio p / p_old, k1 and k3 have the value and the gradient of
KL(p || q) off policy too (DeepSeek-V3.2, arXiv 2512.02556, section 3.1).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_rl.objectives.losses import MAX_LOG_RATIO

KLEstimator = Literal["k1", "k2", "k3"]

ROUNDING_NATS = 1e-5
"""Largest difference of two computations of one log-probability that may be rounding in float32."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """KL(policy || reference) of each token by one of three estimators.

    Args:
        logprobs: (N, T) under the policy, which sampled the tokens.
        ref_logprobs: (N, T) under the reference.
        estimator: ``k1`` = log p - log q, unbiased, of either sign; ``k2`` = (log p - log q)^2 / 2, biased, never negative;
            ``k3`` = q / p - 1 - log(q / p), unbiased, never negative (GRPO, arXiv 2402.03300, eq. 4).

    Returns:
        (N, T) in nats.
    """
    difference = ref_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    # Only k3 has an exponential that could overflow.
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps small values, for which exp(x) - 1 - x rounds to below zero.
    return (difference.expm1() - difference).clamp(min=0.0)


def kl_penalties(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """KL of each token as a term of the reward; 0 if the two log-probabilities differ by rounding alone.

    Before the first step the whole KL is rounding, and would make equal rewards unequal.

    Args:
        logprobs: (N, T) of the sampler.
        ref_logprobs: (N, T) of the reference.
        estimator: as in `kl_estimate`.

    Returns:
        (N, T) in nats.
    """
    rounding = (logprobs - ref_logprobs).abs() < ROUNDING_NATS
    return kl_estimate(logprobs, ref_logprobs, estimator).masked_fill(rounding, 0.0)
