"""Miniature of a policy: few narrow layers of the same kinds, short windows, and weights that make attention matter.

Properties of a model type (how it masks, caches and places its tokens) show on its miniature within milliseconds, and in full
precision, whatever the size, the dtype and the weights of the policy are.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lit_rl.models.loading import rope_tables
from lit_rl.models.policy import Policy
from lit_rl.models.quantization import quantize
from lit_rl.randomness import seeded

PARAMETERS = 8_000_000
"""Weights of a miniature at most."""
VOCABULARY = 64
"""Tokens of a miniature at most."""
HEADS = 2
"""Attention heads of a narrow miniature."""
WINDOW = 4
"""Tokens of windows, chunks and selections of a miniature."""
BOUNDARY = 12
"""Tokens after which the rope of a miniature takes another table, if it has two."""
GAIN = 2.0
"""Size of a layer's output beside its input: attention scores spread over a few nats, so that every key and cap matters."""

WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "local_attention",
    "index_topk",
    "keep_window_size",
    "floor_scale",
)
"""Options of configs that count tokens which a token attends to, or after which attention changes."""
NARROW = {
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "block_ff_dim": 64,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
"""Options of configs that only widths of feed-forward layers depend on, and their largest values in a narrow miniature."""


def miniature(policy: Policy, attention: str, dtype: torch.dtype = torch.float32) -> Policy | None:
    """Miniature of a policy, in eval mode; the same weights for the same config.

    Args:
        policy: the policy; left as it is.
        attention: attention implementation of transformers.
        dtype: precision of its weights.

    Returns:
        The miniature; None if the model's config cannot be made small.
    """
    kind: type[PreTrainedModel] = type(policy.causal_lm)
    for narrow in (False, True):
        try:
            config = short_config(policy.causal_lm.config, narrow)
            if _size(kind, config) <= PARAMETERS:
                model = _random_model(kind, config, attention, dtype)
                if policy.spec.quantization is not None:
                    quantize(model, policy.spec.quantization)
                return _policy_of(policy, model)
        except Exception:  # any error of the model's own code, since short options may not fit each other
            continue
    return None


def _size(kind: type[PreTrainedModel], config: PretrainedConfig) -> int:
    """Number of weights."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in kind(copy.deepcopy(config)).parameters())


def _policy_of(policy: Policy, model: PreTrainedModel) -> Policy:
    """The same policy around another model."""
    made = copy.copy(policy)
    made._modules, made._buffers = {"model": model}, {"missing": None}
    made.spec = replace(policy.spec, lora=None, gradient_checkpointing=False, unshard="rollout")
    made.vocabulary = model.get_output_embeddings().weight.shape[0]
    made.value_head = None
    return made.eval()


def _random_model(kind: type[PreTrainedModel], config: PretrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    with seeded(0):
        model: PreTrainedModel = kind._from_config(config, attn_implementation=attention, dtype=dtype)
    with seeded(1):  # attention implementations of some model types draw different numbers above
        _randomize(model)
    return model


def short_config(config: PretrainedConfig, narrow: bool) -> PretrainedConfig:
    """Copy of a config with one layer of each kind, short windows and a small vocabulary.

    Args:
        config: the config.
        narrow: whether layers get few heads and small widths too.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    _cut_layers(config)
    config.vocab_size = min(config.vocab_size, VOCABULARY)
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
        config.pad_token_id = 0
    for name in WINDOWS:
        _lower(config, name, WINDOW)
    _lower(config, "original_max_position_embeddings", BOUNDARY)  # some types copy it into the tables of their rope
    for table in rope_tables(config):
        if "original_max_position_embeddings" in table:
            table["original_max_position_embeddings"] = min(table["original_max_position_embeddings"], BOUNDARY)
    if narrow:
        _narrow(config)
    return config


def _lower(config: PretrainedConfig, name: str, most: int) -> None:
    value = getattr(config, name, None)
    if isinstance(value, int) and not isinstance(value, bool):
        setattr(config, name, min(value, most))


def _cut_layers(config: PretrainedConfig) -> None:
    """Keep the first layer of each kind, by the lists that have an entry for each layer; without lists, a period of layers."""
    count = config.num_hidden_layers
    lists = {
        name: value
        for name, value in vars(config).items()
        # Entries that all differ are numbers of layers, not kinds.
        if isinstance(value, list) and len(value) == count and (count < 3 or len(set(_hashable(value))) < count)
    }
    if lists:
        kinds = list(zip(*map(_hashable, lists.values()), strict=True))
        kept = sorted({kinds.index(kind) for kind in kinds})
        kept = kept if len(kept) > 1 else list(range(min(2, count)))
        for name, value in lists.items():
            setattr(config, name, [value[layer] for layer in kept])
        config.num_hidden_layers = len(kept)
        return
    periods = [
        value
        for name, value in vars(config).items()
        if re.search("period|interval|pattern|every_n|first_k|dense_layers", name) and isinstance(value, int)
    ]
    config.num_hidden_layers = min(count, max([1, *periods]) + 1)


def _hashable(values: list[Any]) -> list[Any]:
    return [repr(value) if isinstance(value, list | dict) else value for value in values]


def _narrow(config: PretrainedConfig) -> None:
    """Fewer heads of the same size, and narrow feed-forward layers."""
    heads = config.num_attention_heads
    kept = min(heads, HEADS)
    shared = getattr(config, "num_key_value_heads", None)
    if shared:
        config.num_key_value_heads = kept if shared == heads else max(1, kept // 2)
    config.num_attention_heads = kept
    config.hidden_size = config.hidden_size * kept // heads
    for name, most in NARROW.items():
        _lower(config, name, most)


@torch.no_grad()
def _randomize(model: PreTrainedModel) -> None:
    """Weights of layers of about equal outputs, whatever the config's own are; norms and biases a little off their own."""
    embeddings = model.get_input_embeddings().weight
    for weight in model.parameters():
        noise = torch.randn_like(weight)
        if weight is embeddings:
            weight.copy_(noise)
        elif weight.dim() > 1:
            weight.copy_(noise * GAIN / _fan_in(weight) ** 0.5)
        else:
            weight.add_(noise, alpha=0.2)


def _fan_in(weight: Tensor) -> int:
    return weight.shape[-1]
