"""Agreement of sampler and learner: before any step on sampled rows both give them the same log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

AGREEMENT_NATS = {"full": 1e-3, "half": 5e-2}
"""Mean difference per token up to which sampler and learner agree, by the precision of the run."""


def check_agreement(log_ratio: Tensor, sampled: Tensor, full: bool, total: Callable[[Tensor], Tensor]) -> bool:
    """Refuse a learner whose log-probabilities differ from the sampler's before any step.

    Args:
        log_ratio: (N, T) learner's minus sampler's log-probabilities, 0 at tokens that were not sampled.
        sampled: (N, T) bool, True at sampled tokens.
        full: whether weights and computations have full precision.
        total: sums a tensor over all ranks.

    Returns:
        Whether they agree; False if the difference is not finite, since the step then fails, and the next one is looked at.

    Raises:
        ValueError: if they differ.
    """
    # Over all ranks, so that all stop or none: a rank alone would leave the others in a collective.
    difference, count = total(torch.stack([log_ratio.abs().sum().double(), sampled.sum().double()]))
    mean = float(difference / count)
    if not math.isfinite(mean):
        return False
    if mean > AGREEMENT_NATS["full" if full else "half"]:
        raise ValueError(
            f"log-probabilities of learner and sampler differ by {mean:.2g} nats a token before any step; every "
            "ratio would be wrong; likely the model has randomness in train mode or does not support its cache: "
            "try model.policy.attention eager, or another model_type."
        )
    return True
