"""From rewards to advantages: how much better a completion was than the others. Pure functions on tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AdvantageScale = Literal["group", "batch", "none"]


def group_advantages(rewards: Tensor, scale: AdvantageScale = "group", eps: float = 1e-4) -> Tensor:
    """Reward minus the mean of its group, divided by a standard deviation (GRPO, arXiv 2402.03300, section 4.1.2).

    ``A_i = (r_i - mean(r)) / (std(r) + eps)`` with the unbiased std. Example: rewards 1 0 1 0 have mean 0.5 and std
    0.57735, hence advantages +-0.866 (+-0.86587 with eps = 1e-4).

    Args:
        rewards: (P, G), each row a group. All groups of all ranks where ``scale`` is ``batch``.
        scale: ``group`` divides by the std within the group, ``batch`` by that of all rewards (Lite PPO,
            arXiv 2508.08221), ``none`` does not divide (Dr. GRPO, arXiv 2503.20783).
        eps: added to the std.

    Returns:
        (P, G); exactly 0 in a group whose rewards are all equal.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal rewards may be off by rounding, and a std of 1e-8 would blow that up into a signal.
    centered = centered.masked_fill(equal_groups(rewards)[:, None], 0.0)
    if scale == "none":
        return centered
    std = rewards.std() if scale == "batch" else rewards.std(dim=1, keepdim=True)
    return centered / (std + eps)


def equal_groups(rewards: Tensor) -> Tensor:
    """(P, G) -> (P) bool, True where all rewards of the group are exactly equal: it teaches nothing."""
    return torch.all(rewards == rewards[:, :1], dim=1)
