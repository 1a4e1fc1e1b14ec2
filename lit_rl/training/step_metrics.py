"""Metrics of a rollout, and metrics of an optimizer step over its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rl.objectives.advantages import equal_groups
from lit_rl.objectives.kl import kl_estimate
from lit_rl.rollouts import Rollouts


class BatchLoss(NamedTuple):
    """Loss of a micro-batch, and its shares in the metrics of its optimizer step."""

    loss: Tensor
    """0-D with gradient: its share in the loss of the step; shares of micro-batches and ranks add up."""
    sums: dict[str, Tensor]
    """0-D shares; over all micro-batches and ranks they add up to the metric."""
    ratios: dict[str, tuple[Tensor, Tensor]]
    """0-D shares of a numerator and of a denominator; the metric is the ratio of their sums."""
    ranges: dict[str, Tensor]
    """1-D values; the smallest and the largest of the step are logged as ``<name>/min`` and ``<name>/max``."""


class StepMetrics:
    """Metrics of one optimizer step, added up over its micro-batches and over ranks.

    Args:
        values: finished metrics, such as those of the rollout.
    """

    def __init__(self, values: dict[str, float]) -> None:
        self.values = dict(values)
        self._shares: dict[str, Tensor] = {}  # (2) float64 each: numerator and denominator; denominator 0: a plain sum
        self._ends: dict[str, Tensor] = {}  # (2) each: smallest value, negated, and largest value

    def add(self, sums: dict[str, Tensor], ratios: dict[str, tuple[Tensor, Tensor]], ranges: dict[str, Tensor]) -> None:
        """Add the shares of a micro-batch; `BatchLoss` explains the arguments."""
        shares = {name: torch.stack([value.detach().double(), value.new_zeros(()).double()]) for name, value in sums.items()}
        shares |= {name: torch.stack([value.double() for value in pair]) for name, pair in ratios.items()}
        for name, share in shares.items():
            self._shares[name] = self._shares.get(name, torch.zeros_like(share)) + share
        for name, values in ranges.items():
            # The smallest is kept negated, so that one maximum over micro-batches and ranks serves both ends.
            ends = torch.stack([-values.min(), values.max()]) if len(values) else values.new_full((2,), -torch.inf)
            self._ends[name] = self._ends.get(name, ends).maximum(ends)

    def over_ranks(self, total: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """All metrics, equal on all ranks.

        Args:
            total: sums a tensor over all ranks.
            largest: takes the elementwise maximum over all ranks.
        """
        # One collective for all metrics: every rank must have added the same names in the same order.
        totals = total(torch.stack(list(self._shares.values()))).tolist()
        metrics = {name: top / bottom if bottom else top for name, (top, bottom) in zip(self._shares, totals, strict=True)}
        for name, ends in self._ends.items():
            low, high = largest(ends).tolist()
            metrics |= {f"{name}/min": -low, f"{name}/max": high}
        return self.values | metrics


def rollout_metrics(rollouts: Rollouts, gather: Callable[[Tensor], Tensor], arm_names: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of a rollout over all ranks, by TRL's names.

    Args:
        rollouts: scored rollouts of this rank.
        gather: joins the values (n) of all ranks.
        arm_names: names of the arms that drew the rows.
    """
    # Values are gathered and then averaged: ranks hold different numbers of tokens, so a mean of their means would be wrong.
    # Rewards and parts are over the rows that were scored.
    rewards, scored = gather(rollouts.rewards[rollouts.scored]), gather(rollouts.scored)
    lengths, truncated = gather(rollouts.lengths).float(), gather(rollouts.truncated)
    sampled = gather(rollouts.sampled.sum(1)).float().sum()
    known = {"reward": rewards.mean(), "reward_std": rewards.std()} if bool(scored.any()) else {}
    metrics = known | {
        "frac_reward_zero_std": gather(rollouts.per_group(rollouts.rewards, equal_groups)).float().mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": truncated.float().mean(),
        "entropy": gather((rollouts.entropies * rollouts.sampled).sum(1)).sum() / sampled,
    }
    if rollouts.has("ref_logprobs"):
        # k3 whatever the objective's estimator, so that runs compare.
        kl = kl_estimate(rollouts.logprobs, rollouts.ref_logprobs) * rollouts.sampled
        metrics["kl"] = gather(kl.sum(1)).sum() / sampled
    if known:
        metrics |= {f"rewards/{name}/mean": gather(values)[scored].mean() for name, values in rollouts.parts.items()}
    if arm_names and rollouts.has("arm"):
        arms = gather(rollouts.arm)
        for number, name in enumerate(arm_names):
            metrics[f"arms/{name}/share"] = (arms == number).float().mean()
            if bool((drawn := (arms == number)[scored]).any()):
                metrics[f"arms/{name}/reward"] = rewards[drawn].mean()
    return {name: float(value) for name, value in metrics.items()}
