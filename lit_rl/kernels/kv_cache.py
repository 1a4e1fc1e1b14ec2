"""KV cache: rows of a transformers cache are repeated, selected, joined, trimmed; memory for new positions is preallocated.

Keys and values are (n, H, S, D). Rows are aligned on the right: column -1 is the last token of every row, and columns
before a row's first token are padding that the attention mask leaves out. Hybrid models (lfm2 and others) keep
convolution and recurrent states of fixed size beside keys and values, or instead of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)


def repeat_cache(cache: DynamicCache, repeats: int | Tensor) -> None:
    """Repeat every row ``repeats`` times, (n) or one number, the copies of a row beside each other, in place and
    differentiably."""
    for layer in cache.layers:
        if not isinstance(layer, PreallocatedLayer):  # layers with shared prompts have all their rows from the start
            _change_states(layer, lambda state: state.repeat_interleave(repeats, dim=0))


def select_cache(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only the given rows (1-D index tensor), in place."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.select(rows)
        else:
            _change_states(layer, lambda state: state.index_select(0, rows))


def preallocate_cache(cache: DynamicCache, positions: int) -> None:
    """Preallocate memory for ``positions`` more positions in full-attention layers, in place; for decoding only."""
    # Not `isinstance`: the sliding-window layer is a subclass, and keeps no more columns than its window.
    cache.layers = [PreallocatedLayer(layer, positions) if type(layer) is DynamicLayer else layer for layer in cache.layers]


def join_caches(cache: DynamicCache, other: DynamicCache) -> None:
    """Append the rows of another cache, in place; the other cache must not be used afterwards."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, PreallocatedLayer):
            layer.join(added)
            continue
        if isinstance(layer, CacheLayerMixin) and layer.keys is not None:
            layer.keys, layer.values = align_right(layer.keys, added.keys), align_right(layer.values, added.values)
        if isinstance(layer, DynamicSlidingWindowLayer):
            # Columns that the layer has seen: as many as its widest row has, kept or not.
            layer.cumulative_length = max(layer.cumulative_length, added.cumulative_length)
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for states, new in ((layer.conv_states, added.conv_states), (layer.recurrent_states, added.recurrent_states)):
                states.update({key: torch.cat([state, new[key]]) for key, state in states.items() if state is not None})


def trim_cache(cache: DynamicCache, columns: int) -> None:
    """Cut off the first columns, which are padding in every row, in place."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.trim(columns)
        elif isinstance(layer, CacheLayerMixin) and layer.keys is not None:
            width = layer.keys.shape[-2]
            if isinstance(layer, DynamicSlidingWindowLayer):
                # It holds only the last columns, which may all be kept.
                layer.cumulative_length -= columns
                width = min(width, layer.cumulative_length)
            else:
                width -= columns
            layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc,unused-ignore]
    """Cache layer whose memory is preallocated: a new position is written in place, without a copy of the old ones.

    ``keys`` and ``values`` are views of the part that is written.

    Args:
        layer: a filled layer; its states move here.
        spare: positions to allocate beyond the filled ones.
    """

    def __init__(self, layer: DynamicLayer, spare: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.spare = spare
        self._allocate(layer.keys, layer.values)

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        self.length = keys.shape[-2]
        self._key_memory, self._value_memory = _enlarged(keys, self.spare), _enlarged(values, self.spare)
        self._update_views()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        end = self.length + key_states.shape[-2]
        # One more `spare` is enough: a decoding step adds one position.
        if end > self._key_memory.shape[-2]:
            self._allocate(self.keys, self.values)
        self._key_memory[:, :, self.length : end] = key_states
        self._value_memory[:, :, self.length : end] = value_states
        self.length = end
        self._update_views()
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (1-D index tensor), in the same memory."""
        # Copying only the rows that move makes it cheap to drop the last ones.
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for memory in (self._key_memory, self._value_memory):
            # The right side is a copy, so a row that is overwritten here may be read as well.
            memory[moved, :, : self.length] = memory[rows[moved], :, : self.length]
        self._key_memory, self._value_memory = self._key_memory[: len(rows)], self._value_memory[: len(rows)]
        self._update_views()

    def trim(self, columns: int) -> None:
        """Cut off the first columns."""
        self._key_memory, self._value_memory = self._key_memory[:, :, columns:], self._value_memory[:, :, columns:]
        self.length -= columns
        self._update_views()

    def join(self, other: Self) -> None:
        """Append the rows of another layer."""
        self._allocate(align_right(self.keys, other.keys), align_right(self.values, other.values))

    def _update_views(self) -> None:
        self.keys, self.values = self._key_memory[:, :, : self.length], self._value_memory[:, :, : self.length]


def _enlarged(state: Tensor, spare: int) -> Tensor:
    """(n, H, S, D) -> (n, H, S + spare, D), the new columns not initialized."""
    rows, heads, width, size = state.shape
    memory = state.new_empty(rows, heads, width + spare, size)
    memory[:, :, :width] = state
    # A view, as the memory is after rows have left: a compiled step would be compiled anew for the difference.
    return memory[:]


def align_right(first: Tensor, second: Tensor) -> Tensor:
    """Rows of both, the narrower ones with zeros on their left: (n, H, S, D) and (m, H, T, D) -> (n + m, H, max, D)."""
    width = max(first.shape[-2], second.shape[-2])
    return torch.cat([pad(state, (0, 0, width - state.shape[-2], 0)) for state in (first, second)])


def _change_states(layer: CacheLayerMixin | LinearAttentionCacheLayerMixin, change: Callable[[Tensor], Tensor]) -> None:
    """Replace every state of a layer by a function of it."""
    # Keys of a layer that was never run are empty and have no rows.
    if isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.keys.numel() > 0:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for states in (layer.conv_states, layer.recurrent_states):
            states.update({key: change(state) for key, state in states.items() if state is not None})
