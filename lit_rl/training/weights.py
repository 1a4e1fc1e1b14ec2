"""Weights that learn: what an optimizer cannot train is refused, and the share of weights that a step moves is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_rl.models.spec import PolicySpec

MEASURED_STEP = 1
"""Optimizer steps before the one that is measured: a warmup begins with a step at a rate of 0."""
MEASURED_WEIGHTS = 4096
"""Numbers of each weight that are looked at, so that memory does not grow with the model."""


def check_learning(groups: dict[str, dict[str, Any]]) -> None:
    """Refuse a part of the model that cannot learn.

    Args:
        groups: groups of the optimizer, by the names of the parts.

    Raises:
        ValueError: if a group has no weight that is trained, or has weights in half precision.
    """
    for name, group in groups.items():
        trained: list[nn.Parameter] = [weight for weight in group["params"] if weight.requires_grad]
        if not trained:
            raise ValueError(
                f"model.{name}: all of its weights are frozen, so that it would never learn; "
                "look for what sets requires_grad to False, a callback for example, or leave the part out."
            )
        for weight in trained:
            if weight.dtype in (torch.bfloat16, torch.float16):
                dtype = str(weight.dtype).removeprefix("torch.")
                raise ValueError(
                    f"model.{name}: its weights learn in {dtype}, where small steps round to nothing; leave `dtype` at float32 "
                    "and write trainer.precision bf16-mixed, or train `lora` on a base in bfloat16."
                )


def check_quantization(spec: PolicySpec, name: str = "policy") -> None:
    """Refuse to train a quantized model without adapters: its linear layers are frozen, and the rest alone would learn.

    Args:
        spec: the model.
        name: part of the config that names it.
    """
    if spec.quantization is not None and spec.lora is None:
        raise ValueError(
            f"model.{name}.quantization {spec.quantization} freezes all linear layers; write model.{name}.lora too, for "
            "example {r: 16, alpha: 32}, or leave quantization out."
        )


def some_weights(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, Tensor]]:
    """Weights of an optimizer, each with a copy of some of its numbers; of a sharded weight, numbers of this rank's part."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [(weight, _some(weight).clone()) for weight in weights]


def share_moved(before: list[tuple[nn.Parameter, Tensor]], total: Callable[[Tensor], Tensor]) -> float:
    """Share of the numbers with a gradient that differ from `some_weights` before the step.

    Args:
        before: from `some_weights`.
        total: sums a tensor over all ranks.
    """
    counts = torch.zeros(2, dtype=torch.float64)
    for weight, old in before:
        if weight.grad is not None:
            seen = _some(weight.grad) != 0
            moved = (_some(weight) != old) & seen
            counts += torch.stack([moved.sum(), seen.sum()]).cpu()
    moved_numbers, numbers = total(counts).tolist()
    return moved_numbers / max(numbers, 1.0)


def _some(weight: Tensor) -> Tensor:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    flat = local.detach().flatten()
    return flat[:: max(1, len(flat) // MEASURED_WEIGHTS)]
