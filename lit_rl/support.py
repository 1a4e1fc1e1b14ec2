"""Support of sampled tokens: the tokens that top-k and top-p left to choose from.

Shapes are named in :mod:`lit_rl.types`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


class Support:
    """Tokens that top-k and top-p kept at every sampled position; ragged, stored flat.

    Args:
        ids: (K) int32, kept token ids of all positions one after another, rows first.
        counts: (N, T) int32, kept tokens of each position; 0 at tokens that were not sampled.
    """

    def __init__(self, ids: Tensor, counts: Tensor) -> None:
        self.ids, self.counts = ids, counts

    def select(self, rows: Tensor, width: int) -> Support:
        """The given rows (1-D index tensor), cut to ``width`` tokens; tokens after it must have no kept ids."""
        per_row = self.counts.sum(1)  # (N)
        # Copied to the CPU for all rows at once, not for each row.
        ends = per_row.cumsum(0).tolist()
        starts = [end - size for end, size in zip(ends, per_row.tolist(), strict=True)]
        pieces = [self.ids[starts[row] : ends[row]] for row in rows.tolist()]
        return Support(torch.cat(pieces) if pieces else self.ids[:0], self.counts[rows, :width])

    @classmethod
    def join(cls, supports: Sequence[Support]) -> Support:
        """The rows of several supports, one support after another."""
        return cls(torch.cat([support.ids for support in supports]), join_rows([support.counts for support in supports]))

    def to(self, device: torch.device | str) -> Support:
        return Support(self.ids.to(device), self.counts.to(device))


def join_rows(values: Sequence[Tensor]) -> Tensor:
    """(n) tensors, or (n, T) tensors of several widths with zeros added on the right, as one."""
    if values[0].dim() == 1:
        return torch.cat(list(values))
    width = max(value.shape[1] for value in values)
    return torch.cat([pad(value, (0, width - value.shape[1])) for value in values])
