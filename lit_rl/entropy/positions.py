"""Positions of texts and the entropies they are told: of which windows, in which order, and how they are spread."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_rl.text.windows import Windows

SHOWN = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Quantiles of a distribution that is printed."""


class HasEntropies(Protocol):
    """Positions of texts, as the data modules make them: targets of windows, of which some were chosen."""

    windows: Windows
    places: NDArray[np.integer]
    entropies: NDArray[np.floating] | None

    def __len__(self) -> int: ...

    def keep(self, targets: NDArray[np.bool_]) -> None: ...


def needed_windows(positions: HasEntropies) -> NDArray[np.integer]:
    """Numbers of the windows that hold a position, ascending."""
    return np.unique(np.searchsorted(positions.windows.offsets, positions.places, side="right") - 1)


def attach_entropies(positions: HasEntropies, numbers: NDArray[np.integer], values: NDArray[np.float32]) -> None:
    """Give positions the entropies of all targets of the windows of these numbers; the other targets' stay NaN."""
    offsets = positions.windows.offsets
    if len(numbers) < len(positions.windows):
        targets = np.concatenate([np.arange(offsets[number], offsets[number + 1]) for number in numbers])
        some, values = values, np.full(offsets[-1], np.nan, dtype=np.float32)
        values[targets] = some
    positions.entropies = values


def distribution(values: NDArray[np.floating]) -> str:
    """Quantiles of entropies, in one line."""
    shown = (f"{level:.0%} {value:.3f}" for level, value in zip(SHOWN, np.quantile(values, SHOWN), strict=True))
    return f"Entropies in nats: {', '.join(shown)}."
