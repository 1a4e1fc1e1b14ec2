"""Repeat and select the rows of a transformers cache, convolution and recurrent states included."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers import DynamicCache


def repeat_cache(cache: DynamicCache, repeats: int) -> None:
    """Repeat every row ``repeats`` times, one group after another, in place and differentiably."""
    _apply(cache, lambda state: state.repeat_interleave(repeats, dim=0))


def select_cache(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only the given rows (1-D index tensor), in place."""
    _apply(cache, lambda state: state.index_select(0, rows))


def _apply(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    for layer in cache.layers:
        for name in ("keys", "values"):
            state = getattr(layer, name, None)
            if state is not None and state.numel() > 0:
                setattr(layer, name, change(state))
        # Hybrid models (lfm2 and others) keep fixed-size states beside or instead of keys and values.
        for name in ("conv_states", "recurrent_states"):
            states: dict[int, Tensor | None] = getattr(layer, name, None) or {}
            for number, state in list(states.items()):
                if state is not None:
                    states[number] = change(state)
