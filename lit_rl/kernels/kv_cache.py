"""Repeat, select, join and extend the rows of a transformers cache, convolution and recurrent states included.

Rows are aligned on the right: column -1 is the last token of every row, and what is left of a row's first token is padding
that the attention mask leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def repeat_cache(cache: DynamicCache, repeats: int) -> None:
    """Repeat every row ``repeats`` times, one group after another, in place and differentiably."""
    _apply(cache, lambda state: state.repeat_interleave(repeats, dim=0))


def select_cache(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only the given rows (1-D index tensor), in place."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.select(rows)
    _apply(cache, lambda state: state.index_select(0, rows))


def make_room(cache: DynamicCache, length: int) -> None:
    """Let full-attention layers take ``length`` more positions without copying what they hold; for decoding only."""
    cache.layers = [PreallocatedLayer(layer, length) if type(layer) is DynamicLayer else layer for layer in cache.layers]


def join_caches(cache: DynamicCache, other: DynamicCache) -> None:
    """Put the rows of another cache behind those of this one, in place; the other one is used up."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, PreallocatedLayer):
            layer.join(added)
        elif getattr(layer, "keys", None) is not None:
            layer.keys, layer.values = (align_right(getattr(layer, name), getattr(added, name)) for name in ("keys", "values"))
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = max(layer.cumulative_length, added.cumulative_length)
        for name in ("conv_states", "recurrent_states"):
            states, more = getattr(layer, name, None) or {}, getattr(added, name, None)
            for number, state in list(states.items()):
                if state is not None:
                    states[number] = torch.cat([state, more[number]])  # type: ignore[index]


def trim_cache(cache: DynamicCache, columns: int) -> None:
    """Cut off the first columns, which are padding in every row, in place."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.trim(columns)
        elif getattr(layer, "keys", None) is not None:
            width = layer.keys.shape[-2]
            if hasattr(layer, "cumulative_length"):  # a sliding window holds the last columns only
                layer.cumulative_length -= columns
                width = min(width, layer.cumulative_length)
            else:
                width -= columns
            layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]


class PreallocatedLayer(DynamicLayer):
    """A cache layer with room: a new position is written beside the old ones, which growing by concatenation multiplicity.

    Args:
        layer: a filled layer; its states move here.
        room: positions to make room for.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.room = room
        self._fill(layer.keys, layer.values)

    def _fill(self, keys: Tensor, values: Tensor) -> None:
        self.length = keys.shape[-2]
        self._keys, self._values = (_with_room(state, self.room) for state in (keys, values))
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        end = self.length + key_states.shape[-2]
        if end > self._keys.shape[-2]:
            self._fill(self.keys, self.values)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        self._show()
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in the same memory: none is copied that stands where it belongs."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for buffer in (self._keys, self._values):
            buffer[moved, :, : self.length] = buffer[rows[moved], :, : self.length]
        self._keys, self._values = self._keys[: len(rows)], self._values[: len(rows)]
        self._show()

    def trim(self, columns: int) -> None:
        """Cut off the first columns."""
        self._keys, self._values = self._keys[:, :, columns:], self._values[:, :, columns:]
        self.length -= columns
        self._show()

    def join(self, other: PreallocatedLayer) -> None:
        """Put the rows of another layer behind one's own."""
        self._fill(align_right(self.keys, other.keys), align_right(self.values, other.values))

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]


def _with_room(state: Tensor, room: int) -> Tensor:
    rows, heads, width, size = state.shape
    buffer = state.new_empty(rows, heads, width + room, size)
    buffer[:, :, :width] = state
    return buffer[:]  # a view, as it is after rows have left: a compiled step tells them apart


def align_right(first: Tensor, second: Tensor) -> Tensor:
    """Rows of both, the shorter ones with zeros on their left: (n, H, S, D) and (m, H, T, D) -> (n + m, H, max, D)."""
    width = max(first.shape[-2], second.shape[-2])
    padded = [torch.nn.functional.pad(state, (0, 0, width - state.shape[-2], 0)) for state in (first, second)]
    return torch.cat(padded)


def _apply(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
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
