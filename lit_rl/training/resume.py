"""Resuming: states of all ranks' training streams in a checkpoint, and a guard against the weights of another model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def collect_states(state: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """Stream states of all ranks, by rank; every rank must call."""
    if ranks == 1:
        return [state]
    # Lightning saves the loader state of rank 0 alone, and would give it to every rank.
    states: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    return states


def state_of_rank(states: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    """Stream state of one rank, from the states in a checkpoint.

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
    """Refuse the weights of another model; without weights on either side there is nothing to compare.

    Raises:
        ValueError: for the first weight that is missing on one side, or has another shape.
    """
    if not (own and saved):
        return
    for name in own | saved:
        # A sharded weight (DTensor) has the shape of the whole weight, so sharded and whole states compare.
        here, there = _shape(own.get(name)), _shape(saved.get(name))
        if here != there:
            raise ValueError(
                f"the checkpoint is of another model: {name} is {there} there and {here} here; "
                "set model.policy, and model.critic, as they were when it was written."
            )


def _shape(weight: Tensor | None) -> str:
    return "missing" if weight is None else str(tuple(weight.shape))
