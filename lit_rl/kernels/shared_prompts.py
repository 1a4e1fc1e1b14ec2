"""Decoding with the keys of a prompt held, and read, once for all completions of its group.

A decoding step spends most of its time reading keys and values. Here the rows of a group ask their prompt's keys together,
as queries of one attention; each row asks its own completion's keys; and the two softmaxes are merged exactly
(the log-sum-exp trick of FlashAttention, arXiv 2205.14135, section 3.1).

It plugs into models that attend through transformers' attention interface: the cache layer hands itself out in place of the
keys, and `lit_rl.kernels.attention` recognises it. `lit_rl.sampling.check` tries it on each model before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lit_rl.kernels.kv_cache import PreallocatedLayer, align_right

SHORTEST = 48
"""Prompts of fewer tokens are repeated for each row: the reading that is saved would be less than the merging costs."""


class Groups:
    """Which prompt each row continues, and how many tokens of its own it has: the same in all layers.

    Args:
        mask: (P, L) bool, True at the prompts' own tokens.
        group_size: G, rows per prompt.
    """

    def __init__(self, mask: Tensor, group_size: int) -> None:
        self.mask, self.group_size = mask, group_size
        self.place = torch.arange(len(mask) * group_size, device=mask.device)  # (n), p * G + g
        self.own = torch.zeros_like(self.place)  # (n)
        self._changed()

    def _changed(self) -> None:
        bias = torch.zeros(self.mask.shape, device=self.mask.device).masked_fill(~self.mask, -torch.inf)
        self.prompt_bias = None if bool(self.mask.all()) else bias[:, None, None]  # (P, 1, 1, L)
        self.complete = len(self.place) == len(self.mask) * self.group_size  # rows are in order, so nothing is missing
        self._own_bias: tuple[int, Tensor | None] = (-1, None)

    def step(self) -> None:
        """Every row gets one more token."""
        self.own = self.own + 1

    def own_bias(self, width: int) -> Tensor | None:
        """(n, 1, 1, width): rows that joined later have no tokens in the first columns; None where all have the same."""
        if self._own_bias[0] != width:  # all layers ask for the same one
            missing = torch.arange(width, device=self.own.device) < (width - self.own)[:, None]
            bias = torch.zeros(missing.shape, device=self.own.device).masked_fill(missing, -torch.inf)[:, None, None]
            self._own_bias = (width, bias if bool(missing.any()) else None)
        return self._own_bias[1]

    def select(self, rows: Tensor) -> Tensor:
        """Keep these rows, given in ascending order; which prompts are left, as a 1-D index tensor."""
        place = self.place[rows]
        prompts, owner = (place // self.group_size).unique(return_inverse=True)
        self.place, self.own = owner * self.group_size + place % self.group_size, self.own[rows]
        self.mask = self.mask[prompts]
        self._changed()
        return prompts

    def join(self, other: Groups) -> None:
        """Take in the rows of others behind one's own."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.place = torch.cat([self.place, other.place + len(self.mask) * self.group_size])
        self.own = torch.cat([self.own, other.own])
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        self._changed()


class SharedPromptLayer(PreallocatedLayer):
    """The keys and values of P prompts, once each, and beside them those of the completions' own tokens.

    Args:
        layer: a layer filled with the prompts; it is used up.
        groups: which prompt each row continues.
        room: positions of the completions to make room for.
    """

    def __init__(self, layer: DynamicLayer, groups: Groups, room: int) -> None:
        self.groups, self.prompt_keys, self.prompt_values = groups, layer.keys, layer.values
        self.columns = layer.keys.shape[-2]  # that the rows would have in a layer without sharing, for the masks
        rows = len(groups.place)
        layer.keys, layer.values = (
            state.new_empty(rows, state.shape[1], 0, state.shape[3]) for state in (layer.keys, layer.values)
        )
        super().__init__(layer, room)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        super().update(key_states, value_states)
        self.columns += key_states.shape[-2]
        return self, self

    def get_seq_length(self) -> int:
        return self.columns

    def select_prompts(self, prompts: Tensor) -> None:
        """Keep only the keys of these prompts."""
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

    def trim(self, columns: int) -> None:
        super().trim(self.length - int(self.groups.own.max()))
        self.columns -= columns

    def join(self, other: PreallocatedLayer) -> None:
        assert isinstance(other, SharedPromptLayer)
        self.prompt_keys = align_right(self.prompt_keys, other.prompt_keys)
        self.prompt_values = align_right(self.prompt_values, other.prompt_values)
        self.columns = max(self.columns, other.columns)
        super().join(other)

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """(n, Hq, 1, D) queries, one token a row -> (n, 1, Hq, D)."""
        groups, (rows, heads, _, size) = self.groups, query.shape
        kv_heads, layout = self.keys.shape[1], len(self.prompt_keys) * groups.group_size
        query = query.view(rows, kv_heads, heads // kv_heads, size)
        together = query
        if not groups.complete:
            together = query.new_zeros(layout, *query.shape[1:]).index_copy(0, groups.place, query)
        together = together.view(-1, groups.group_size, kv_heads, heads // kv_heads, size).transpose(1, 2)
        shape = together.shape  # (P, Hkv, G, Hq / Hkv, D)
        prompt = _attention(together.flatten(2, 3), self.prompt_keys, self.prompt_values, groups.prompt_bias, scaling)
        prompt_out, prompt_lse = (part.view(*shape[:4], -1).transpose(1, 2).flatten(0, 1) for part in prompt)
        if not groups.complete:
            prompt_out, prompt_lse = prompt_out[groups.place], prompt_lse[groups.place]
        own_out, own_lse = _attention(query, self.keys, self.values, groups.own_bias(self.length), scaling)
        out = torch.lerp(own_out, prompt_out, (prompt_lse - own_lse).sigmoid().to(own_out.dtype))
        return out.view(rows, 1, heads, -1)


def _attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention (b, h, q, D) and the log-sum-exp of each query's scores (b, h, q, 1) in float32, which weighs it in a merge."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the public function keeps the log-sum-exp back
        out, lse = flash(query, keys, values, 0.0, False, attn_mask=bias, scale=scaling)
        return out, lse[..., None]
    scores = (query @ keys.transpose(-1, -2)).float() * scaling
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp().to(values.dtype) @ values, lse


def share_prompts(cache: DynamicCache, groups: Groups, room: int) -> None:
    """Turn the full-attention layers of a prefilled cache into layers that hold each prompt once, in place."""
    cache.layers = [SharedPromptLayer(layer, groups, room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
