"""Optimizer: made by an option of the module, and checked before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch

from lit_rl.options import first_line


def build_optimizer(make: Callable[[Any], Any], groups: list[dict[str, Any]], trainer: pl.Trainer) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        make: groups of parameters -> optimizer.
        groups: the groups.
        trainer: the Trainer.

    Raises:
        ValueError: if it is not a torch optimizer, refuses its options, or would be clipped by a wrong norm.
    """
    try:
        optimizer = make(groups)
    # The optimizers' own answers to wrong values, of which None is one.
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.optimizer: {first_line(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"model.optimizer made a {type(optimizer).__name__}; name a subclass of torch.optim.Optimizer.")
    # It divides gradients by the scale of the loss inside its step, after they were clipped.
    if trainer.precision == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError("model.optimizer is fused, whose gradients cannot be clipped under 16-mixed; write fused: false.")
    return optimizer
