"""Resume state: the training streams of all ranks in a checkpoint, and a guard against the weights of another model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def collect_states(state: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """Stream states of all ranks; every rank must call."""
    if ranks == 1:
        return [state]
    states: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    return states


def state_of_rank(states: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    """This rank's stream state out of a checkpoint.

    Raises:
        ValueError: if the checkpoint was written by another number of processes.
    """
    if len(states) != ranks:
        raise ValueError(
            f"the checkpoint was written by {len(states)} process(es) and this run has {ranks}; "
            "resume with as many, or start a new run from the exported model."
        )
    return states[rank]


def check_same_model(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Refuse the weights of another model; without weights on either side there is nothing to compare."""
    for name in [*own, *saved] if own and saved else []:
        here, there = own.get(name), saved.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = ["missing" if value is None else str(tuple(value.shape)) for value in (there, here)]
            raise ValueError(
                f"the checkpoint is of another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "set model.policy, and model.critic, as they were when it was written."
            )
