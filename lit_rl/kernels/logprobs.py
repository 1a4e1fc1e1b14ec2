"""Log-probability and entropy of given tokens, without ever holding all logits.

The head is applied to as many token positions at a time as fit a fixed count of logits, and again in the backward pass.
Peak memory grows with ``chunk x vocabulary``, never with ``tokens x vocabulary``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_rl.kernels.fused_head import Chunks, LinearHead, fused_scores
from lit_rl.types import TokenScores

LOGITS_PER_CHUNK = 2**23
"""Logits held at a time: 32 MiB in float32."""
WEIGHTS_PER_LOGIT = 4
"""Weights of the head for each logit that a chunk may hold in any case: every chunk adds to the gradient of all weights."""


def distribution(logits: Tensor, temperature: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution that tokens are drawn from.

    Args:
        logits: (M, V).
        temperature: (M); None for 1.
        kept: (M, V) bool, True at the tokens that top-k and top-p left; the others get -inf, and the rest is renormalised.

    Returns:
        (M, V) in at least float32.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature is not None:
        logits = logits / temperature[:, None]
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    return logits.log_softmax(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy ``-sum_v p_v log p_v`` in nats: (..., V) log-probabilities -> (...)."""
    # A token of probability 0 adds nothing; 0 * -inf would be NaN.
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

    A `LinearHead` has a gradient worked out by hand (`lit_rl.kernels.fused_head`). Any other head is differentiated by
    autograd, which takes longer.

    Args:
        hidden: (M, H) hidden states.
        targets: (M) token ids.
        head: (m, H) -> (m, V) logits.
        vocabulary: V.
        temperature: (M); None for 1.
        kept: ids (K) and counts (M) of the tokens to renormalise on, see `lit_rl.kernels.fused_head.kept_mask`; None for all.
        entropy_grad: whether the entropy carries gradient.
        details: whether to compute entropies and hits; otherwise they are zeros, which saves two passes over the logits.

    Returns:
        Scores of M tokens in float32 (float64 for a float64 model).
    """
    # As a list, once: a slice by a tensor would wait for the GPU at each chunk.
    offsets = [0] if kept is None else torch.cat([kept[1].new_zeros(1), kept[1].cumsum(0)]).tolist()  # (M + 1)
    chunks = Chunks(max(1, LOGITS_PER_CHUNK // vocabulary), targets, temperature, kept, offsets, details or entropy_grad)
    if not isinstance(head, LinearHead) or not len(hidden):
        return _score_by_autograd(hidden, head, vocabulary, chunks, entropy_grad)
    chunks = chunks._replace(size=max(chunks.size, hidden.shape[1] // WEIGHTS_PER_LOGIT))
    scores = TokenScores(*fused_scores(hidden, head.weight, head.bias, head, chunks))
    return scores if entropy_grad else scores._replace(entropies=scores.entropies.detach())


def _score_by_autograd(
    hidden: Tensor, head: LinearHead | Callable[[Tensor], Tensor], vocabulary: int, chunks: Chunks, entropy_grad: bool
) -> TokenScores:
    """`score_tokens`, the logits of each chunk recomputed in the backward pass."""

    def score_chunk(rows: Tensor, targets: Tensor, temperature: Tensor | None, mask: Tensor | None) -> tuple[Tensor, ...]:
        logp = distribution(head(rows), temperature, mask)  # (m, V)
        logprobs = logp.gather(1, targets[:, None])[:, 0]
        if not chunks.details:
            return logprobs, torch.zeros_like(logprobs), torch.zeros_like(targets, dtype=torch.bool)
        entropies = entropy(logp if entropy_grad else logp.detach())
        return logprobs, entropies, logp.detach().argmax(1) == targets

    scores: list[tuple[Tensor, ...]] = []
    # Without a token one empty chunk is scored, so that the result still has a gradient, of 0.
    for part in chunks.slices() or [slice(0, 0)]:
        temperature = None if chunks.temperature is None else chunks.temperature[part]
        args = (hidden[part], chunks.targets[part], temperature, chunks.mask(part, vocabulary))
        # A single chunk is small enough to keep; recomputing it would only cost time.
        if len(hidden) <= chunks.size or not torch.is_grad_enabled():
            scores.append(score_chunk(*args))
        else:
            # The state of the generators is kept: a head with an adapter may have dropout, the same in both passes.
            scores.append(checkpoint(score_chunk, *args, use_reentrant=False))
    return TokenScores(*(torch.cat(column) for column in zip(*scores, strict=True)))
