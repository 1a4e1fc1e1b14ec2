"""Sampling of one token per row from its logits: temperature, top-k, top-p, and inversion of the cumulative distribution.

Randomness comes in as one uniform number per row. So a token depends on the row's own logits and number, and on nothing else:
neither on the rows beside it, nor on the number of processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rl.kernels.logprobs import distribution, entropy

NUCLEUS_TOKENS = 256
"""Tokens that are sorted first to find a nucleus; eight times as many if the nucleus is larger, and so on."""


class SampledTokens(NamedTuple):
    """One sampled token per row, and the distribution that it was drawn from."""

    tokens: Tensor
    """(n) token ids."""
    logprobs: Tensor
    """(n) log-probabilities of the tokens."""
    entropies: Tensor
    """(n) entropies of the distributions in nats."""
    kept: Tensor | None
    """(n, V) bool, True at tokens that top-k and top-p kept; None if they kept all."""


def sample_tokens(
    logits: Tensor, temperature: Tensor | None, top_k: int, top_p: float | Tensor, uniform: Tensor | None
) -> SampledTokens:
    """Draw one token per row.

    Args:
        logits: (n, V).
        temperature: (n), divides the logits; None for 1.
        top_k: keeps the k most likely tokens, and tokens as likely as the last of them; 0 keeps all.
        top_p: keeps the most likely tokens up to the token that brings their probability to top_p, and tokens as likely as
            the last of them; 1 keeps all. One number, or (n) float32 below 1.
        uniform: (n) float32 in [0, 1); None takes the most likely token.
    """
    logp = distribution(logits, temperature)
    kept = None if uniform is None else kept_tokens(logp, top_k, top_p)
    if kept is not None:
        # From the logits once more, as the learner does, so that both sides round alike.
        logp = distribution(logits, temperature, kept)
    tokens = logp.argmax(-1) if uniform is None else inverse_cdf(logp.exp(), uniform)
    return SampledTokens(tokens, _at(logp, tokens), entropy(logp), kept)


def kept_tokens(logp: Tensor, top_k: int, top_p: float | Tensor) -> Tensor | None:
    """(n, V) bool, True at tokens that top-k keeps, and top-p of what top-k left; None if all are kept.

    Args:
        logp: (n, V) log-probabilities.
        top_k: see `sample_tokens`.
        top_p: see `sample_tokens`.
    """
    kept = None
    if 0 < top_k < logp.shape[-1]:
        kept = logp >= logp.topk(top_k).values[:, -1:]
        logp = logp.masked_fill(~kept, -torch.inf).log_softmax(-1)
    if isinstance(top_p, Tensor) or top_p < 1:
        threshold = _nucleus_threshold(logp, top_p[:, None] if isinstance(top_p, Tensor) else top_p)
        nucleus = logp >= threshold[:, None]
        kept = nucleus if kept is None else kept & nucleus
    return kept


def _nucleus_threshold(logp: Tensor, top_p: float | Tensor) -> Tensor:
    """(n) log-probability of the least likely token of the nucleus (arXiv 1904.09751), found by sorting as few as it takes."""
    vocabulary = logp.shape[-1]
    size = min(NUCLEUS_TOKENS, vocabulary)
    while True:
        descending = logp.topk(size).values  # (n, size)
        chances = descending.exp()
        # A token stays if the tokens before it have not reached top_p: the first always does, and so does the crossing one.
        inside = (chances.cumsum(-1) - chances < top_p).sum(-1)  # (n)
        if size == vocabulary or bool((inside < size).all()):
            return descending.gather(1, inside[:, None] - 1)[:, 0]
        size = min(8 * size, vocabulary)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n) the first token whose cumulative probability exceeds the uniform number, from (n, V) and (n)."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1]
    # Rounding may lift u * total to total, which no token exceeds; a token of probability 0 is never the first to exceed.
    threshold = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    # A parallel sum may move by a rounding at a token of probability 0; no token outside the support may come of that.
    impossible = _at(probabilities, tokens) <= 0
    return torch.where(impossible, probabilities.argmax(-1), tokens) if bool(impossible.any()) else tokens


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    """(n) value at each row's token, from (n, V)."""
    return values.gather(1, tokens[:, None])[:, 0]
