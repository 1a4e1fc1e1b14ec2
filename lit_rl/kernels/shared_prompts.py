"""Prefix sharing (cascade attention): a prompt's keys are held, and read, once for all completions of its group.

A decoding step spends most of its time reading keys and values. Here the rows of a group attend to their prompt's keys
together, as queries of one attention. Each row attends to its own completion's keys. The two softmaxes are merged exactly
(the log-sum-exp of FlashAttention, arXiv 2205.14135, section 3.1).

Prefix sharing works for models that attend through transformers' attention interface: the cache layer hands itself out in
place of the keys, and `lit_rl.kernels.attention` recognises it. `lit_rl.sampling.check` tries it on each model before use.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lit_rl.kernels.kv_cache import PreallocatedLayer, align_right
from lit_rl.kernels.softcap import soft_cap

MIN_SHARED_TOKENS = 48
"""Tokens of the shortest prompt that is worth sharing: below it, merging costs more time than reading saves."""


class Groups:
    """Prompt and length of each row, equal in all layers; one group of rows continues each prompt.

    A group has ``group_size`` slots. Rows that have finished leave their slots empty, and so does a prompt with fewer rows.

    Args:
        mask: (P, L) bool, True at the prompts' own tokens.
        group_size: G, slots per prompt.
        counts: (P) rows of each prompt, 1 to G.
    """

    def __init__(self, mask: Tensor, group_size: int, counts: Tensor) -> None:
        self.mask, self.group_size = mask, group_size
        slots = torch.arange(len(mask) * group_size, device=mask.device).view(-1, group_size)  # (P, G), p * G + g
        self.slots = slots[slots % group_size < counts[:, None]]  # (n)
        self.lengths = torch.zeros_like(self.slots)  # (n), tokens of the row itself
        self._update_masks()

    def _update_masks(self) -> None:
        bias = torch.zeros(self.mask.shape, device=self.mask.device).masked_fill(~self.mask, -torch.inf)
        self.prompt_bias = None if bool(self.mask.all()) else bias[:, None, None]  # (P, 1, 1, L)
        self.full = len(self.slots) == len(self.mask) * self.group_size  # slots ascend, so row i has slot i
        self._row_bias: tuple[int, Tensor | None] = (-1, None)  # width, and the bias of that width

    def step(self) -> None:
        """Every row gets one more token."""
        self.lengths = self.lengths + 1

    def row_bias(self, width: int) -> Tensor | None:
        """Bias (n, 1, 1, width) of the rows' own columns, -inf before a row's first token; None if no column is empty."""
        if self._row_bias[0] != width:  # computed once for all layers
            empty = torch.arange(width, device=self.lengths.device) < (width - self.lengths)[:, None]  # (n, width)
            bias = torch.zeros(empty.shape, device=self.lengths.device).masked_fill(empty, -torch.inf)[:, None, None]
            self._row_bias = (width, bias if bool(empty.any()) else None)
        return self._row_bias[1]

    def select(self, rows: Tensor) -> Tensor:
        """Keep these rows, given in ascending order; returns the prompts that are left, as a 1-D index tensor."""
        slots = self.slots[rows]
        prompts: Tensor
        prompts, owner = torch.unique(slots // self.group_size, return_inverse=True)
        self.slots, self.lengths = owner * self.group_size + slots % self.group_size, self.lengths[rows]
        self.mask = self.mask[prompts]
        self._update_masks()
        return prompts

    def join(self, other: Groups) -> None:
        """Append the prompts and rows of other groups."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.slots = torch.cat([self.slots, other.slots + len(self.mask) * self.group_size])
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        self._update_masks()


class SharedPromptLayer(PreallocatedLayer):
    """Keys and values of P prompts, once each, and beside them the keys and values of the rows' own tokens.

    Args:
        layer: a layer filled with the prompts; it must not be used afterwards.
        groups: prompt and length of each row.
        spare: positions to allocate for the rows' own tokens.
    """

    def __init__(self, layer: DynamicLayer, groups: Groups, spare: int) -> None:
        self.groups, self.prompt_keys, self.prompt_values = groups, layer.keys, layer.values
        # Transformers sizes masks as if every row held its prompt.
        self.columns: int = layer.keys.shape[-2]
        rows = len(groups.slots)
        layer.keys, layer.values = (
            state.new_empty(rows, state.shape[1], 0, state.shape[3]) for state in (layer.keys, layer.values)
        )
        super().__init__(layer, spare)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        super().update(key_states, value_states)
        self.columns += key_states.shape[-2]
        return self, self  # `lit_rl.kernels.attention` takes it in place of keys and values

    def get_seq_length(self) -> int:
        return self.columns

    def select_prompts(self, prompts: Tensor) -> None:
        """Keep only the keys and values of these prompts (1-D index tensor)."""
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

    def trim(self, columns: int) -> None:
        # Columns of whole rows; of its own columns a layer needs as many as its longest row has tokens.
        super().trim(self.length - int(self.groups.lengths.max()))
        self.columns -= columns

    def join(self, other: Self) -> None:
        self.prompt_keys = align_right(self.prompt_keys, other.prompt_keys)
        self.prompt_values = align_right(self.prompt_values, other.prompt_values)
        self.columns = max(self.columns, other.columns)
        super().join(other)

    def attend(self, query: Tensor, scaling: float, cap: float = 0.0) -> Tensor:
        """Attention of a decoding step: (n, Hq, 1, D) queries -> (n, 1, Hq, D); ``cap`` limits scores softly, 0 does not."""
        rows, heads, _, size = query.shape
        kv_heads = self.keys.shape[1]
        query = query.view(rows, kv_heads, heads // kv_heads, size)  # (n, Hkv, q, D), query heads that share their keys
        prompt_out, prompt_lse = self._attend_prompts(query, scaling, cap)
        own_out, own_lse = _attention(query, self.keys, self.values, self.groups.row_bias(self.length), scaling, cap)
        # The prompt's share of the joint softmax: e^a / (e^a + e^b) = sigmoid(a - b).
        share = (prompt_lse - own_lse).sigmoid().to(own_out.dtype)  # (n, Hkv, q, 1)
        return torch.lerp(own_out, prompt_out, share).view(rows, 1, heads, -1)

    def _attend_prompts(self, query: Tensor, scaling: float, cap: float) -> tuple[Tensor, Tensor]:
        """Attention (n, Hkv, q, D) to the prompts alone and its log-sum-exp (n, Hkv, q, 1)."""
        groups = self.groups
        if not groups.full:
            slots = len(self.prompt_keys) * groups.group_size
            query = query.new_zeros(slots, *query.shape[1:]).index_copy(0, groups.slots, query)  # (P * G, Hkv, q, D)
        query = query.view(-1, groups.group_size, *query.shape[1:]).transpose(1, 2)
        shape = query.shape  # (P, Hkv, G, q, D)
        parts = _attention(query.flatten(2, 3), self.prompt_keys, self.prompt_values, groups.prompt_bias, scaling, cap)
        out, lse = (part.view(*shape[:4], -1).transpose(1, 2).flatten(0, 1) for part in parts)  # (P * G, Hkv, q, ...)
        return (out, lse) if groups.full else (out[groups.slots], lse[groups.slots])


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Attention (b, h, q, D) of (b, h, q, D) queries and the log-sum-exp of each query's scores, (b, h, q, 1) in float32."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type == "cpu" and keys.shape[-1] == values.shape[-1] and not cap:
        # The public function does not return the log-sum-exp.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(query, keys, values, 0.0, False, attn_mask=bias, scale=scaling)
        return out, lse[..., None]
    scores = soft_cap((query @ keys.transpose(-1, -2)).float() * scaling, cap)  # (b, h, q, k)
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp().to(values.dtype) @ values, lse


def share_prompts(cache: DynamicCache, groups: Groups, spare: int) -> None:
    """Turn the full-attention layers of a prefilled cache into layers that hold each prompt once, in place.

    Args:
        cache: a cache of the prompts; other layers stay as they are.
        groups: prompt and length of each row.
        spare: positions to allocate for the rows' own tokens.
    """
    cache.layers = [SharedPromptLayer(layer, groups, spare) if type(layer) is DynamicLayer else layer for layer in cache.layers]
