"""State of torch's global generators, which dropout and weight initialisation draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_state() -> dict[str, Tensor]:
    """State of this process's CPU generator, and of the current GPU's generator if there is a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        # Of the current device: each process has one.
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_generator_state(state: dict[str, Tensor]) -> None:
    """Continue from a `generator_state`."""
    # Torch takes states on the CPU alone, and a loaded checkpoint may have moved them.
    torch.set_rng_state(state["cpu"].cpu())
    # A run may be resumed on another kind of device; it then draws other numbers.
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of this seed, and leave the global state as it was."""
    before = generator_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_generator_state(before)
