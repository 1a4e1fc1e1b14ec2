"""Loading of a causal language model and its tokenizer as a `PolicySpec` names them: pretrained, or from scratch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name

from lit_rl.models.adapters import add_adapter, base_quantization, is_adapter, merged_adapter, open_adapter, open_base
from lit_rl.models.quantization import is_quantized, load_quantized, quantize, refuse_quantized
from lit_rl.models.spec import PolicySpec
from lit_rl.options import first_line
from lit_rl.tasks.tokenizers import arithmetic_tokenizer, byte_tokenizer, reasoning_tokenizer, rpn_tokenizer, story_tokenizer
from lit_rl.text.chat import AssistantTurn

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
    "stories": story_tokenizer,
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
        tokenizer = _open_tokenizer(source, None if spec.tokenizer else spec.gguf_file)
    except Exception as error:  # any error of a foreign file
        raise ValueError(f"model.policy.{key}: no tokenizer at {source!r}: {_described(error)}") from error
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
    ids, rows = _id_count(tokenizer), model.get_input_embeddings().num_embeddings
    if ids > rows:
        raise ValueError(
            f"model.policy.tokenizer: {ids} tokens, but the model embeds only {rows}; "
            "use the tokenizer that the model was trained with."
        )
    if spec.quantization and not is_quantized(model):
        quantize(model, spec.quantization)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # the row would never learn, and it is often the end token's
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if keeps_adapter(spec):
        return open_adapter(model, str(spec.pretrained), spec.lora)
    return add_adapter(model, spec.lora) if spec.lora else model


def keeps_adapter(spec: PolicySpec) -> bool:
    """Whether the adapter in ``pretrained`` stays apart from its base, which is quantized as in the adapter's training."""
    return spec.quantization is not None and base_quantization(str(spec.pretrained)) == spec.quantization


def missing_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor | None:
    """Ids below ``vocabulary`` that have no token, in ascending order; None for none."""
    known = set(tokenizer.get_vocab().values())
    missing = [token for token in range(vocabulary) if token not in known]
    return torch.tensor(missing) if missing else None


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, further: Sequence[str] = ()) -> list[int]:
    """Token ids that end a completion, in ascending order: the tokenizer's, the chat template's, the model's, and further ones.

    Raises:
        ValueError: if a further text is not a token.
    """
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    # A chat model often ends its turn by a token that is not the tokenizer's end token.
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    turn = AssistantTurn.of(tokenizer)
    return sorted({*ids, tokenizer.eos_token_id, *([turn.end] if turn else []), *(_token(text, tokenizer) for text in further)})


def _token(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the one token that a text is, by its name in the vocabulary (``<|im_end|>``) or as text (a line break)."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[text]] if text in vocabulary else tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or tokenizer.decode(ids) != text:
        raise ValueError(f"model.policy.stop_tokens: {text!r} is not one token of the tokenizer; write texts that are.")
    return int(ids[0])


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens that fit into a model's positions, or below the boundary of its rope; None for no limit."""
    # Bloom's positions are ALiBi's, without a limit; its config may name one all the same.
    limit = None if config.model_type == "bloom" else getattr(config, "max_position_embeddings", None)
    return min(filter(None, [limit, rope_boundary(config)]), default=None)


def rope_boundary(config: PretrainedConfig) -> int | None:
    """Tokens up to which a long rope (Phi-3) keeps its first table; None without such a rope.

    The longest row of a batch chooses the table for all its rows, and a completion that crosses the boundary finds keys of the
    other table in the cache: past the boundary results depend on the batch.
    """
    long = [table for table in rope_tables(config) if table.get("rope_type") == "longrope"]
    return min((table["original_max_position_embeddings"] for table in long), default=None)


def rope_tables(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Options of each rope of a config: one for all layers, or one for each kind of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    return [given] if "rope_type" in given else [table for table in given.values() if isinstance(table, dict)]


def long_rope_note(config: PretrainedConfig) -> str:
    """Remark beside a limit that is the boundary of a long rope; empty otherwise."""
    boundary = rope_boundary(config)
    return "" if boundary is None else f" (past {boundary} its long rope takes another table for all rows of a batch)"


def _open_tokenizer(source: str, gguf_file: str | None) -> PreTrainedTokenizerBase:
    if gguf_file is not None:
        return AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, padding_side="left")
    saved = get_tokenizer_config(source)
    # For some model types AutoTokenizer takes another class than the file's, since files on the hub were wrong. The generic
    # class holds for its own files, and transformers 5, which alone writes `backend`, names the class that was saved.
    generic = saved.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    named = tokenizer_class_from_name(saved["tokenizer_class"]) if saved.get("backend") == "tokenizers" else None
    kind = PreTrainedTokenizerFast if generic else named or AutoTokenizer
    return kind.from_pretrained(source, padding_side="left")


def _from_scratch(spec: PolicySpec, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    given = spec.config or {}
    model_type = given["model_type"]
    if model_type not in CONFIG_MAPPING:
        close = ", ".join(difflib.get_close_matches(model_type, list(CONFIG_MAPPING))) or "one of transformers, as llama"
        raise ValueError(f"model.policy.config: `model_type` {model_type!r} is unknown; write {close}.")
    # Later entries win: a config's options over a named size, and both over what the tokenizer says.
    options: dict[str, Any] = _token_options(tokenizer) | SIZES.get(spec.size or "", {}) | given
    options.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **options)
        if spec.size and "num_key_value_heads" not in given:
            config = AutoConfig.for_model(model_type, **options, **_dividing_heads(config))
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=spec.attention)
    except Exception as error:  # any error of the model's own code
        raise ValueError(f"model.policy.config: cannot build a {model_type!r}: {_described(error)}") from error


def _token_options(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Options of a new model's config that its tokenizer decides."""
    named = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    # transformers keeps the embedding of the padding at 0: so an id that only pads, or none.
    if named["pad_token_id"] in (named["bos_token_id"], named["eos_token_id"], named.pop("unk_token_id")):
        named["pad_token_id"] = None
    return {"vocab_size": _id_count(tokenizer)} | named


def _id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids up to the last one with a token; a vocabulary may leave ids out, so that `len` is smaller."""
    return max(tokenizer.get_vocab().values()) + 1


def _dividing_heads(config: PretrainedConfig) -> dict[str, int]:
    """Heads of keys and values that divide the heads of a named size; nothing if the model type's own do."""
    heads, shared = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    return {"num_key_value_heads": math.gcd(heads, shared)} if heads and shared and heads % shared else {}


def _pretrained(spec: PolicySpec, dtype: torch.dtype) -> PreTrainedModel:
    source = str(spec.pretrained)
    _refuse_missing_folder(source, "pretrained")
    options = {"dtype": dtype, "attn_implementation": spec.attention}
    try:
        if spec.gguf_file is not None:
            return _unpacked(source, spec.gguf_file, **options)
        if keeps_adapter(spec):
            return open_base(source, **options)
        if is_adapter(source):
            return merged_adapter(source, **options)
        if spec.quantization is not None:
            return load_quantized(source, spec.quantization, **options)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
        refuse_quantized(model.config)
    except Exception as error:  # any error of a foreign file
        raise ValueError(f"model.policy.pretrained: cannot open {source!r}: {_described(error)}") from error
    if model._hf_peft_config_loaded:  # transformers opens an adapter of the hub beside its base, both frozen
        raise ValueError(f"model.policy.pretrained: {source!r} is an adapter on the hub; download it and write its folder.")
    return model


def _unpacked(source: str, gguf_file: str, **options: Any) -> PreTrainedModel:
    """Model of a GGUF file as a plain one: transformers refuses to save the model that it makes of the file."""
    opened = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, **options)
    config = opened.config
    del config.quantization_config  # of the file, not of these weights
    model = AutoModelForCausalLM.from_config(config, **options)
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = opened.generation_config
    return model


def _described(error: BaseException) -> str:
    if isinstance(error, OSError | ValueError):  # these explain themselves, others are not a sentence without their type
        return first_line(error)
    # A config's error wraps the one that says what is wrong.
    return _described(error.__cause__) if error.__cause__ else f"{type(error).__name__}: {first_line(error)}"


def _refuse_missing_folder(source: str, key: str) -> None:
    """Refuse a path that does not exist before the hub is asked; hub names are ``name`` or ``owner/name``."""
    # A folder of a run, `runs/name`, has the form of a hub name.
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or source.split("/")[0] == "runs"
    if looks_like_path and not Path(source).expanduser().is_dir():
        raise ValueError(f"model.policy.{key}: the folder {source!r} does not exist; give an exported folder or a hub name.")
