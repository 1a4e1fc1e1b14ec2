"""Attention with softly capped scores: ``cap tanh(score / cap)`` (Gemma 2, arXiv 2408.00118, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """Scores between -cap and cap; 0 caps nothing."""
    return torch.tanh(scores / cap) * cap if cap else scores


def capped_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, cap: float, drop: float = 0.0
) -> Tensor:
    """Attention whose scores exist as a whole, as no fused kernel of torch caps them.

    Args:
        query: (n, Hq, q, D).
        keys: (n, Hkv, k, D).
        values: (n, Hkv, k, D).
        mask: bool, True where a query attends, of a shape that (n, 1, q, k) covers; None for plain causal attention.
        scaling: factor on queries times keys.
        cap: soft limit of the scores.
        drop: probability of dropping a weight.

    Returns:
        (n, Hq, q, D).
    """
    repeats = query.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    if mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = soft_cap(query @ keys.transpose(-1, -2) * scaling, cap)  # (n, Hq, q, k)
    # Not -inf: a row of padding attends to nothing and would be NaN, which spoils gradients.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    return dropout(weights, drop) @ values
