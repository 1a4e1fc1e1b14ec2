"""Positions of texts and their entropies: which windows are computed, and how values are attached and described."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_rl.text.windows import Windows

SHOWN_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Quantiles that `describe_entropies` prints."""


class HasEntropies(Protocol):
    """Positions of texts, as data modules make them: a choice among the targets of windows."""

    windows: Windows
    places: NDArray[np.integer]
    """Numbers of the chosen targets among the targets of all windows."""
    entropies: NDArray[np.floating] | None
    """Nats of all targets, NaN if not computed; None before `attach_entropies`."""

    def __len__(self) -> int: ...

    def keep(self, targets: NDArray[np.bool_]) -> None: ...


def needed_windows(positions: HasEntropies) -> NDArray[np.integer]:
    """Numbers of the windows that hold a position, ascending."""
    # From the right, as in `Windows.locate`: a window without targets shares its offset with the next window.
    return np.unique(np.searchsorted(positions.windows.offsets, positions.places, side="right") - 1)


def attach_entropies(positions: HasEntropies, numbers: NDArray[np.integer], values: NDArray[np.float32]) -> None:
    """Attach entropies to positions; targets of windows that were not computed get NaN.

    Args:
        positions: positions of a text.
        numbers: numbers of the windows that were computed, ascending.
        values: entropies of all targets of these windows, in order.
    """
    offsets = positions.windows.offsets
    if len(numbers) < len(positions.windows):
        # Numbers among all targets, so that a position finds its entropy whatever was left out.
        targets = np.concatenate([np.arange(offsets[number], offsets[number + 1]) for number in numbers])
        # NaN is above no threshold, so a target that was not computed is never kept.
        some, values = values, np.full(offsets[-1], np.nan, dtype=np.float32)
        values[targets] = some
    positions.entropies = values


def describe_entropies(values: NDArray[np.floating]) -> str:
    """Quantiles of entropies, in one line."""
    quantiles = zip(SHOWN_QUANTILES, np.quantile(values, SHOWN_QUANTILES), strict=True)
    return f"Entropies in nats: {', '.join(f'{level:.0%} {value:.3f}' for level, value in quantiles)}."
