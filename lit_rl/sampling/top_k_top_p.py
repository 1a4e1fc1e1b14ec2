"""One token per row from its logits: temperature, top-k, top-p, and the inverse of the cumulative distribution.

The randomness comes in as one uniform number per row, so a choice depends on the row's own logits and number and on
nothing else: not on the rows beside it, nor on the number of processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rl.kernels.logprobs import distribution, entropy

NUCLEUS = 256
"""Tokens that are sorted first to find a nucleus; eight times as many where it is larger."""


class Choice(NamedTuple):
    """Tokens (n), their log-probabilities (n), the distribution's entropies (n) in nats, and the (n, V) mask of the
    tokens that top-k and top-p kept (None where every token stayed)."""

    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor
    kept: Tensor | None


def sample_tokens(logits: Tensor, temperature: Tensor | None, top_k: int, top_p: float, uniform: Tensor | None) -> Choice:
    """Draw one token per row.

    Args:
        logits: (n, V).
        temperature: (n), divides the logits; None for 1.
        top_k: keep the k most likely tokens (and those that tie with the last); 0 keeps all.
        top_p: keep the most likely tokens up to the one that carries their mass to top_p or over it (and those that tie with
            it); 1 keeps all.
        uniform: (n) float32 in [0, 1); None takes the most likely token.
    """
    logp = distribution(logits, temperature)
    kept = None if uniform is None else kept_tokens(logp, top_k, top_p)
    if kept is not None:
        logp = distribution(logits, temperature, kept)
    tokens = logp.argmax(-1) if uniform is None else inverse_cdf(logp.exp(), uniform)
    return Choice(tokens, _at(logp, tokens), entropy(logp), kept)


def kept_tokens(logp: Tensor, top_k: int, top_p: float) -> Tensor | None:
    """(n, V) bool of what top-k, then top-p on what is left, keep of the log-probabilities (n, V)."""
    kept = None
    if 0 < top_k < logp.shape[-1]:
        kept = logp >= logp.topk(top_k).values[:, -1:]
        logp = logp.masked_fill(~kept, -torch.inf).log_softmax(-1)
    if top_p < 1:
        nucleus = logp >= _nucleus_threshold(logp, top_p)[:, None]
        kept = nucleus if kept is None else kept & nucleus
    return kept


def _nucleus_threshold(logp: Tensor, top_p: float) -> Tensor:
    """(n) log-probability of the least likely token of the nucleus, sorting no more tokens than it takes."""
    vocabulary = logp.shape[-1]
    size = min(NUCLEUS, vocabulary)
    while True:
        descending = logp.topk(size).values
        chances = descending.exp()
        # A token stays where the mass before it has not reached top_p: the first always does, and so does the crossing one.
        inside = (chances.cumsum(-1) - chances < top_p).sum(-1)
        if size == vocabulary or bool((inside < size).all()):
            return descending.gather(1, inside[:, None] - 1)[:, 0]
        size = min(8 * size, vocabulary)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number: (n, V), (n) -> (n)."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1]
    # Rounding may lift u * total to total, which no token exceeds; a token of probability 0 is never the first to exceed.
    threshold = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    # A parallel sum may move by a rounding where it should stand still; no token outside the support may come of that.
    impossible = _at(probabilities, tokens) <= 0
    return torch.where(impossible, probabilities.argmax(-1), tokens) if bool(impossible.any()) else tokens


def _at(logp: Tensor, tokens: Tensor) -> Tensor:
    return logp.gather(1, tokens[:, None])[:, 0]
