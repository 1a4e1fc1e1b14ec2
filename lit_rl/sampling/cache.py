"""Repeat, select and extend the rows of a transformers cache, convolution and recurrent states included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def repeat_cache(cache: DynamicCache, repeats: int) -> None:
    """Repeat every row ``repeats`` times, one group after another, in place and differentiably."""
    _apply(cache, lambda state: state.repeat_interleave(repeats, dim=0))


def select_cache(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only the given rows (1-D index tensor), in place."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.select(rows)
    _apply(cache, lambda state: state.index_select(0, rows))


def make_room(cache: DynamicCache, length: int) -> None:
    """Let full-attention layers take ``length`` more positions without copying what they hold; for decoding only."""
    cache.layers = [RoomyLayer(layer, length) if type(layer) is DynamicLayer else layer for layer in cache.layers]


class RoomyLayer(DynamicLayer):
    """A cache layer with room: a new position is written beside the old ones, which growing by concatenation copies.

    Args:
        layer: a filled layer; its states move here.
        length: positions to make room for.
    """

    def __init__(self, layer: DynamicLayer, length: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        self._keys, self._values = (_with_room(state, length) for state in (layer.keys, layer.values))
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        self._show()
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep only these rows; they move to the front of the same memory."""
        for buffer in (self._keys, self._values):
            buffer[: len(rows), :, : self.length] = buffer[rows, :, : self.length]
        self._keys, self._values = self._keys[: len(rows)], self._values[: len(rows)]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]


def _with_room(state: Tensor, length: int) -> Tensor:
    rows, heads, width, size = state.shape
    buffer = state.new_empty(rows, heads, width + length, size)
    buffer[:, :, :width] = state
    return buffer


def _apply(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            continue
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
