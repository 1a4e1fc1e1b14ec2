"""Loading of a causal language model and its tokenizer as a `PolicySpec` names them: pretrained, or from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_rl.models.spec import LoRASpec, PolicySpec
from lit_rl.options import first_line
from lit_rl.tasks.tokenizers import arithmetic_tokenizer, byte_tokenizer, reasoning_tokenizer, rpn_tokenizer

SIZES: dict[str, dict[str, int]] = {
    name: {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    for name, width, heads, layers in [
        ("tiny", 32, 2, 2),
        ("small", 64, 4, 4),
        ("medium", 512, 8, 8),
        ("large", 768, 8, 8),
    ]
}
"""Named sizes of a model from scratch."""

TASK_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "arithmetic": arithmetic_tokenizer,
    "reasoning": reasoning_tokenizer,
    "bytes": byte_tokenizer,
    "rpn13": partial(rpn_tokenizer, 13),
    "rpn113": partial(rpn_tokenizer, 113),
}
"""Tokenizers of `lit_rl.tasks`, by their names in `PolicySpec.tokenizer`."""


def load_tokenizer(spec: PolicySpec) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, padded on the left.

    Raises:
        ValueError: if it cannot be found, or has no end token.
    """
    if spec.tokenizer in TASK_TOKENIZERS:
        return TASK_TOKENIZERS[spec.tokenizer]()
    source = str(spec.tokenizer or spec.pretrained)  # the spec has one of them
    key = "tokenizer" if spec.tokenizer else "pretrained"
    _refuse_missing_folder(source, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except (OSError, ValueError) as error:
        raise ValueError(f"model.policy.{key}: no tokenizer at {source!r}: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.policy.{key}: the tokenizer at {source!r} has no end token; completions could never end.")
    if tokenizer.pad_token_id is None:
        # Padding only fills up rows: masks come from lengths, so sharing an id with the end token is harmless.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The causal language model, with adapters if the spec asks for them.

    Raises:
        ValueError: if it cannot be opened or built, or embeds fewer tokens than the tokenizer has.
    """
    dtype = getattr(torch, spec.dtype)
    model = _pretrained(spec, dtype) if spec.pretrained else _from_scratch(spec, tokenizer, dtype)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ValueError(
            f"model.policy.tokenizer: {len(tokenizer)} tokens, but the model embeds only "
            f"{model.get_input_embeddings().num_embeddings}; use the tokenizer that the model was trained with."
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return _with_adapter(model, spec.lora) if spec.lora else model


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a completion, in ascending order: the tokenizer's, and those that the model names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    # A chat model often ends its turn by a token that is not the tokenizer's end token.
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    return sorted({*ids, tokenizer.eos_token_id})


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens that fit into a model's positions; None for no limit."""
    # Bloom's positions are ALiBi's, without a limit; its config may name one all the same.
    return None if config.model_type == "bloom" else getattr(config, "max_position_embeddings", None)


def is_adapter(source: str) -> bool:
    """Whether the folder holds a peft adapter instead of a whole model."""
    return (Path(source) / "adapter_config.json").is_file()


def _from_scratch(spec: PolicySpec, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    # Later entries win: a config's options over a named size, and both over the tokenizer's length.
    options: dict[str, Any] = {"vocab_size": len(tokenizer)} | SIZES.get(spec.size or "", {}) | (spec.config or {})
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model_type = options.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **ends, **options)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=spec.attention)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.policy.config: cannot build a {model_type!r}: {first_line(error)}") from error


def _pretrained(spec: PolicySpec, dtype: torch.dtype) -> PreTrainedModel:
    source = str(spec.pretrained)
    _refuse_missing_folder(source, "pretrained")
    options = {"dtype": dtype, "attn_implementation": spec.attention}
    try:
        if not is_adapter(source):
            return AutoModelForCausalLM.from_pretrained(source, **options)
        from peft import PeftModel

        adapter = json.loads((Path(source) / "adapter_config.json").read_text(encoding="utf-8"))
        base = AutoModelForCausalLM.from_pretrained(adapter["base_model_name_or_path"], **options)
        return PeftModel.from_pretrained(base, source).merge_and_unload()
    except (OSError, ValueError) as error:
        raise ValueError(f"model.policy.pretrained: cannot open {source!r}: {first_line(error)}") from error


def _with_adapter(model: PreTrainedModel, lora: LoRASpec) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _refuse_missing_folder(source: str, key: str) -> None:
    """Refuse a path that does not exist before the hub is asked; hub names are ``name`` or ``owner/name``."""
    # A folder of a run, `runs/name`, has the form of a hub name.
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or source.split("/")[0] == "runs"
    if looks_like_path and not Path(source).expanduser().is_dir():
        raise ValueError(f"model.policy.{key}: the folder {source!r} does not exist; give an exported folder or a hub name.")
