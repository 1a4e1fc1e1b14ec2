"""Merging of an exported adapter into its base: a plain Hugging Face folder that is the trained model, or nothing.

An adapter on a quantized base is merged into the dequantized weights, on which it was trained: merged into the original ones it
would be another model, by the error of the quantization. The rounding to 16 bits remains. It is measured against base and
adapter, computed in float32, and refused if it undoes a good part of what the adapter has learned.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lit_rl.files import new_folder
from lit_rl.models.adapters import is_adapter, merged_adapter, open_base
from lit_rl.models.export import mend_generation_config
from lit_rl.models.loading import end_tokens, load_tokenizer, missing_tokens, position_limit
from lit_rl.models.reopened import COMPLETION, PROMPT, TOLERANCE, last_logprobs, no_bars, probe_ids
from lit_rl.models.spec import PolicySpec
from lit_rl.models.value_head import FILE_NAME

SHARE = 0.25
"""Largest difference of a merged model in 16 bits from base + adapter, as a share of the change that the adapter makes.
Rounding has random directions and learning has not, so that a quarter of the change leaves what was learned."""
ROUNDING = 0.05
"""Difference in nats a token that is always allowed in 16 bits: products in bfloat16 alone make as much."""


class Merged(NamedTuple):
    """Mean differences of log-probabilities, in nats a token."""

    difference: float
    """Between the merged model and base + adapter."""
    change: float
    """Between base + adapter and the base alone."""


def merge_export(folder: Path, target: Path, dtype: torch.dtype) -> Merged:
    """Merge the adapter in a folder, and write model, tokenizer and value head to another one.

    Args:
        folder: folder of the adapter, which names its base.
        target: folder to write; an earlier export is replaced.
        dtype: precision of the merged weights.

    Raises:
        ValueError: if ``folder`` does not hold an adapter, ``target`` may not be replaced, or the merged model, opened again,
            is not base + adapter.
    """
    if not is_adapter(str(folder)):
        raise ValueError(
            f"{folder} is not the folder of an adapter: it has no adapter_config.json, so there is nothing to merge."
        )
    tokenizer = load_tokenizer(PolicySpec(pretrained=str(folder)))
    with no_bars(), new_folder(target) as new:
        ids, expected, base = _before(str(folder), tokenizer)
        _write(str(folder), new, tokenizer, dtype)
        again = AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32, attn_implementation="eager").eval()
        found = _logprobs(again, tokenizer, ids)
        merged = Merged(_gap(found, expected), _gap(expected, base))
        limit = _limit(merged.change, dtype)
        if not merged.difference <= limit:  # NaN is refused too
            raise ValueError(
                f"{folder} merged in {str(dtype).removeprefix('torch.')} is not the trained model: log-probabilities differ by "
                f"{merged.difference:.2g} nats a token from base + adapter, but {limit:.2g} is allowed, since the adapter "
                f"changes them by {merged.change:.2g}; nothing was replaced. Write --dtype float32, or keep the adapter apart."
            )
    return merged


def _limit(change: float, dtype: torch.dtype) -> float:
    """Largest difference, in nats a token, up to which a merged model is base + adapter."""
    if dtype == torch.float32:
        return TOLERANCE["full"]
    return min(max(ROUNDING, SHARE * change), TOLERANCE["half"])


def _before(folder: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (S) of a probe, and log-probabilities (T) of its last tokens by base + adapter and by the base alone."""
    from peft import PeftModel

    model = open_base(folder, dtype=torch.float32, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(model, folder).eval()
    ids = probe_ids(tokenizer, model.get_output_embeddings().weight.shape[0], position_limit(model.config))
    expected = _logprobs(adapted, tokenizer, ids)
    with adapted.disable_adapter():
        return ids, expected, _logprobs(adapted, tokenizer, ids)


def _write(folder: str, new: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> None:
    model = merged_adapter(folder, dtype=dtype, attn_implementation="eager")
    if (generation := model.generation_config) is not None:
        generation.eos_token_id = end_tokens(model, tokenizer)
        mend_generation_config(generation)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    if (head := Path(folder) / FILE_NAME).is_file():
        shutil.copy(head, new / FILE_NAME)


def _logprobs(model: Any, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> Tensor:
    count = len(ids) - len(ids) * PROMPT // (PROMPT + COMPLETION)
    return last_logprobs(model, ids, count, missing_tokens(tokenizer, model.get_output_embeddings().weight.shape[0]))


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())
