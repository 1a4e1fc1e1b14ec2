"""One attention function for transformers' models: packed sequences, shared prompts, or what it would have been anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lit_rl.kernels import packing
from lit_rl.kernels.shared_prompts import SharedPromptLayer

NAME = "lit_rl"


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    packed: packing.Packed | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as `packing` or `sampling.shared_prompts` lay it out where they ask for it, else transformers' own."""
    if packed is not None:
        window, dropout = options.get("sliding_window") or 0, options.get("dropout", 0.0)
        return packing.attend(query, key, value, packed, options["scaling"], window, dropout), None
    if isinstance(key, SharedPromptLayer):
        return key.attend(query, options["scaling"]), None
    if query.shape[2] == 1 and query.device.type == "cpu" and attention_mask is not None and not torch.is_grad_enabled():
        decode = _decode_op if torch.compiler.is_compiling() else _decode
        return decode(query, key, value, attention_mask, options["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _decode(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """(n, Hq, 1, D) queries, one token a row, on (n, Hkv, S, D) keys and values -> (n, 1, Hq, D).

    On a CPU two products and a softmax take less time than the fused kernel, which is made for many queries a row; and
    grouped queries share their keys without a copy.
    """
    rows, heads, _, size = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(rows, kv_heads, heads // kv_heads, size) * scaling
    scores = (grouped @ keys.transpose(-1, -2)).float()
    weights = scores.masked_fill_(~mask, -torch.inf).softmax(-1).to(values.dtype)
    return (weights @ values).view(rows, 1, heads, -1)


@torch.library.custom_op("lit_rl::decode_attention", mutates_args=())
def _decode_op(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """`_decode` as one operation: the compiler would make loops of its products, which take longer."""
    return _decode(query, keys, values, mask, scaling)


@_decode_op.register_fake
def _decode_shape(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    rows, heads, _, size = query.shape
    return query.new_empty(rows, 1, heads, size)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Choose the model's attention function by its name."""
    model.config._attn_implementation = name
