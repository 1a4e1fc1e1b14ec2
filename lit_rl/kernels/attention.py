"""Attention function for transformers: packed sequences, shared prompts and decoding steps; transformers' own for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lit_rl.kernels import packing
from lit_rl.kernels.shared_prompts import SharedPromptLayer
from lit_rl.kernels.softcap import capped_attention

NAME = "lit_rl"
"""Name under which transformers knows the attention function."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    packed: packing.Packed | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: (n, Hq, q, D) queries -> (n, q, Hq, D).

    Args:
        module: the layer.
        query: (n, Hq, q, D).
        key: (n, Hkv, S, D) keys, or the cache layer that attends to them itself.
        value: (n, Hkv, S, D) values, or the cache layer.
        attention_mask: (n, 1, q, S) bool, True where a query attends; None for plain causal attention.
        packed: layout of a packed sequence, whose rows must not see each other.
        softcap: soft limit of the scores (Gemma 2); None for none.
        options: further arguments of transformers; ``scaling`` is a factor on queries times keys.
    """
    cap, dropout = softcap or 0.0, options.get("dropout", 0.0)
    if packed is not None:
        window = options.get("sliding_window") or 0
        return packing.attend(query, key, value, packed, options["scaling"], window, dropout, cap), None
    if isinstance(key, SharedPromptLayer):
        return key.attend(query, options["scaling"], cap), None
    if cap:  # sdpa has no cap and would leave it out
        return capped_attention(query, key, value, attention_mask, options["scaling"], cap, dropout).transpose(1, 2), None
    # Without gradient only: the operation that a compiled step calls has no backward pass.
    if query.shape[2] == 1 and query.device.type == "cpu" and attention_mask is not None and not torch.is_grad_enabled():
        attend_step = _attend_step_op if torch.compiler.is_compiling() else _attend_step
        return attend_step(query, key, value, attention_mask, options["scaling"]), None
    out: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return out, None


def _attend_step(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of a decoding step: (n, Hq, 1, D) queries on (n, Hkv, S, D) keys and values -> (n, 1, Hq, D)."""
    # On a CPU two products take less time than the fused kernel, which is made for many queries a row, and query heads
    # that share their keys do so without a copy of the keys.
    rows, heads, _, size = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(rows, kv_heads, heads // kv_heads, size) * scaling  # (n, Hkv, Hq / Hkv, D)
    scores = (grouped @ keys.transpose(-1, -2)).float()  # (n, Hkv, Hq / Hkv, S)
    weights = scores.masked_fill_(~mask, -torch.inf).softmax(-1).to(values.dtype)
    return (weights @ values).view(rows, 1, heads, -1)


# One operation to the compiler, which would make loops of the products; the loops take longer.
@torch.library.custom_op("lit_rl::decode_attention", mutates_args=())
def _attend_step_op(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return _attend_step(query, keys, values, mask, scaling)


@_attend_step_op.register_fake
def _attend_step_shape(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    rows, heads, _, size = query.shape
    return query.new_empty(rows, 1, heads, size)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Choose the model's attention function by its name."""
    model.config._attn_implementation = name
