"""Log-probability and entropy of given tokens, without ever holding all logits.

The head is applied to as many token positions at a time as fit a fixed count of logits, and recomputed in the backward
pass, so that peak memory grows with ``chunk x vocabulary`` and never with ``tokens x vocabulary``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_rl.kernels.fused_head import Chunks, FusedScores, LinearHead, kept_mask
from lit_rl.types import TokenScores

LOGITS_PER_CHUNK = 2**23
"""Logits held at once, as a count of numbers: 32 MiB in float32."""
HEAD_SHARE = 4
"""A chunk may hold a quarter as many logits as the head has weights, since each chunk adds to the gradient of all of them."""


def distribution(logits: Tensor, temperature: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution that tokens are drawn from: (M, V) logits -> (M, V) float32.

    Args:
        logits: (M, V).
        temperature: (M), None for 1.
        kept: (M, V) bool, the tokens that top-k and top-p left; the others get -inf and the rest is renormalised.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature is not None:
        logits = logits / temperature[:, None]
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    return logits.log_softmax(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """``-sum_v p_v log p_v`` in nats: (..., V) log-probabilities -> (...); a token of probability 0 adds nothing."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


def score_tokens(
    hidden: Tensor,
    targets: Tensor,
    head: LinearHead | Callable[[Tensor], Tensor],
    vocabulary: int,
    temperature: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    entropy_grad: bool = False,
    details: bool = True,
) -> TokenScores:
    """Score M tokens from the hidden states that predict them.

    Through a `LinearHead` the gradient is worked out by hand (`lit_rl.kernels.fused_head`); through any other head by autograd, which
    takes longer.

    Args:
        hidden: (M, H) hidden states.
        targets: (M) token ids.
        head: (m, H) -> (m, V) logits.
        vocabulary: V.
        temperature: (M), None for 1.
        kept: flat ids (K) and counts (M) of the tokens to renormalise on, None for all.
        entropy_grad: whether the entropy carries gradient.
        details: whether entropies and hits are wanted at all; without it they are zeros, and two passes over the logits less.

    Returns:
        Scores of M tokens in float32 (float64 for a float64 model).
    """
    offsets = [0] if kept is None else torch.cat([kept[1].new_zeros(1), kept[1].cumsum(0)]).tolist()
    if isinstance(head, LinearHead) and len(hidden):
        size = max(1, LOGITS_PER_CHUNK // vocabulary, hidden.shape[1] // HEAD_SHARE)
        ids, counts = kept or (None, None)
        chunks = Chunks(size, targets, temperature, ids, counts, offsets, details or entropy_grad)
        scores = TokenScores(*FusedScores.apply(hidden, head.weight, head.bias, head, chunks))
        return scores if entropy_grad else scores._replace(entropies=scores.entropies.detach())

    def chunk_scores(rows: Tensor, tokens: Tensor, heat: Tensor | None, mask: Tensor | None) -> tuple[Tensor, ...]:
        logp = distribution(head(rows), heat, mask)
        picked = logp.gather(1, tokens[:, None])[:, 0]
        if not (details or entropy_grad):
            return picked, torch.zeros_like(picked), torch.zeros_like(tokens, dtype=torch.bool)
        spread = entropy(logp if entropy_grad else logp.detach())
        return picked, spread, logp.detach().argmax(1) == tokens

    size = max(1, LOGITS_PER_CHUNK // vocabulary)
    pieces: list[tuple[Tensor, ...]] = []
    for start in range(0, max(len(hidden), 1), size):
        part = slice(start, start + size)
        mask = None
        if kept is not None:
            stop = min(start + size, len(hidden))
            mask = kept_mask(kept[0][offsets[start] : offsets[stop]], kept[1][part], vocabulary)
        args = (hidden[part], targets[part], None if temperature is None else temperature[part], mask)
        # One chunk is small enough to keep; recomputing it would only cost time.
        if len(hidden) <= size or not torch.is_grad_enabled():
            pieces.append(chunk_scores(*args))
        else:
            pieces.append(checkpoint(chunk_scores, *args, use_reentrant=False, preserve_rng_state=False))
    return TokenScores(*(torch.cat(column) for column in zip(*pieces, strict=True)))
