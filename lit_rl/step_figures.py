"""The figures of one optimizer step, added up over its micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StepFigures:
    """Shares of an optimizer step's figures.

    Args:
        values: figures that are finished already, those of the rollout.
    """

    def __init__(self, values: dict[str, float]) -> None:
        self.values = dict(values)
        self._shares: dict[str, Tensor] = {}  # (2) float64 each: a numerator and a denominator, 0 for a plain sum
        self._ends: dict[str, Tensor] = {}  # (2) each: the smallest value, negated, and the largest

    def add(self, sums: dict[str, Tensor], ratios: dict[str, tuple[Tensor, Tensor]], ranges: dict[str, Tensor]) -> None:
        """Add a micro-batch's; the arguments are those of `PolicyModule.record`."""
        shares = {name: torch.stack([value.detach().double(), value.new_zeros(()).double()]) for name, value in sums.items()}
        shares |= {name: torch.stack([value.double() for value in pair]) for name, pair in ratios.items()}
        for name, share in shares.items():
            self._shares[name] = self._shares.get(name, torch.zeros_like(share)) + share
        for name, values in ranges.items():
            ends = torch.stack([-values.min(), values.max()]) if len(values) else values.new_full((2,), -torch.inf)
            self._ends[name] = self._ends.get(name, ends).maximum(ends)

    def over_ranks(self, total: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """All figures, the same on every rank.

        Args:
            total: sums a tensor over all ranks.
            largest: takes the elementwise maximum over all ranks.
        """
        totals = total(torch.stack(list(self._shares.values()))).tolist()
        figures = {name: top / bottom if bottom else top for name, (top, bottom) in zip(self._shares, totals, strict=True)}
        for name, ends in self._ends.items():
            low, high = largest(ends).tolist()
            figures |= {f"{name}/min": -low, f"{name}/max": high}
        return self.values | figures
