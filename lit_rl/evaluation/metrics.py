"""Metrics of an evaluation: proportions and means with their intervals, pass@k."""

from __future__ import annotations

from math import comb, sqrt

import torch
from torch import Tensor
from torchmetrics import Metric

Z95 = 1.959964
"""Standard errors from the middle of a 95 % interval to its ends."""


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927): honest near 0 and 1, unlike +-1.96 standard errors.

    Example: 45 of 100 gives 0.356 to 0.548.
    """
    if trials == 0:
        return 0.0, 1.0
    p, zz = successes / trials, z * z
    center = (p + zz / (2 * trials)) / (1 + zz / trials)
    half = z / (1 + zz / trials) * sqrt(p * (1 - p) / trials + zz / (4 * trials * trials))
    # Rounding may leave [0, 1] by a last digit.
    return max(0.0, center - half), min(1.0, center + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """``1 - C(n - c, k) / C(n, k)``: unbiased probability that one of k draws is right (arXiv 2107.03374, eq. 1)."""
    # `comb` is exact for integers of any size, and 0 if fewer than k answers are wrong.
    return 1.0 - comb(samples - right, k) / comb(samples, k)


class Proportion(Metric):
    """Mean of values in [0, 1] with its Wilson interval, over all ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64: a float32 count stands still at 2**24. `compute` sums over ranks, so all ranks must call it.
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> dict[str, float]:
        """``mean``, ``low``, ``high``, and the ``count`` of values."""
        total, count = float(self.total), float(self.count)
        low, high = wilson_interval(total, count)
        return {"mean": total / max(count, 1.0), "low": low, "high": high, "count": count}


class Mean(Metric):
    """Mean of any values with the interval of 1.96 standard errors, over all ranks."""

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        values = values.double()
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += values.numel()

    def compute(self) -> dict[str, float]:
        """``mean``, ``low`` and ``high``."""
        count = max(float(self.count), 1.0)
        mean = float(self.total) / count
        # The variance over n, divided by n - 1, is the squared error of the mean. Rounding may make it negative.
        error = sqrt(max(float(self.squares) / count - mean * mean, 0.0) / max(count - 1, 1.0))
        return {"mean": mean, "low": mean - Z95 * error, "high": mean + Z95 * error}


def with_interval(name: str, value: dict[str, float]) -> dict[str, float]:
    """Log entries of a computed `Proportion` or `Mean`: the mean under its name, ``_low`` and ``_high`` of its interval."""
    return {name: value["mean"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
