"""Aggregation: losses of tokens become the loss of an optimizer step, however its rows are spread.

The normaliser is counted over the whole optimizer step on all ranks, and each token weighs its share of it. The loss of a
micro-batch is then a plain weighted sum, and gradients do not depend on how the batch was cut.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]


def token_weights(
    mask: Tensor,
    aggregation: Aggregation,
    num_tokens: int,
    num_sequences: int,
    constant_length: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Share of each token in the loss of one optimizer step. Counts are over all its micro-batches on all ranks.

    ``token``: 1 / tokens (DAPO, 2503.14476, eq. 12). ``sequence``: 1 / (sequences * own length) (GRPO, 2402.03300, eq. 3).
    ``constant``: 1 / (sequences * constant length) (Dr. GRPO, 2503.20783).

    Args:
        mask: (N, T) bool, True at tokens that count.
        aggregation: one of the three.
        num_tokens: tokens that count in the step.
        num_sequences: sequences that count in the step (`counted_sequences`).
        constant_length: tokens of the longest possible completion, for ``constant``.
        dtype: dtype of the weights.

    Returns:
        (N, T); 0 outside the mask.
    """
    weights = mask.to(dtype)
    # Counts may be 0 if overlong completions are masked: 0 / 0 would be NaN, and 0 * NaN stays NaN in the sum.
    if aggregation == "token":
        return weights / max(num_tokens, 1)
    if aggregation == "sequence":
        return weights / (mask.sum(1, keepdim=True).clamp(min=1) * max(num_sequences, 1))
    return weights / (max(num_sequences, 1) * constant_length)


def counted_sequences(mask: Tensor, aggregation: Aggregation) -> Tensor:
    """Rows that count as sequences: (N, T) mask -> (N) bool.

    A mean counts rows with tokens in the mask; the denominator of ``constant`` counts all rows.
    """
    return mask.any(1) | (aggregation == "constant")
