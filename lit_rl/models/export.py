"""Export of a policy as a Hugging Face folder, which transformers and the next run's ``policy.pretrained`` open.

An export is opened again from disk, and compared with the policy, before it replaces an older one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from lit_rl.files import new_folder, trial_folder
from lit_rl.models.adapters import is_adapter, merge, record_quantization
from lit_rl.models.loading import keeps_adapter
from lit_rl.models.policy import Policy
from lit_rl.models.quantization import dense_weights, is_quantized
from lit_rl.models.reopened import Probe, check_reopened, no_bars
from lit_rl.models.value_head import save_value_head
from lit_rl.options import first_line
from lit_rl.randomness import seeded


class WholeWeights(NamedTuple):
    """Weights of a policy, unsharded and on the CPU."""

    model: dict[str, Tensor]
    value_head: dict[str, Tensor]
    """Empty without a value head."""


def whole_weights(policy: Policy) -> WholeWeights:
    """Weights of a policy, for rank 0; every rank must call, since sharded weights are gathered."""
    head = {} if policy.value_head is None else _whole(policy.value_head)
    return WholeWeights(_whole(policy.model), head)


def _whole(module: nn.Module) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(module, options=options))  # type: ignore[arg-type]


def export_policy(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: WholeWeights, probe: Probe, trial: bool = False
) -> None:
    """Write model, tokenizer and value head; the folder is replaced whole or not at all.

    An adapter is saved alone if its base can be opened by name or folder. On any other base (from scratch, from a GGUF file, or
    with an earlier adapter merged into it) it is merged.

    Args:
        policy: the policy.
        tokenizer: its tokenizer.
        folder: path of the export.
        weights: from `whole_weights`.
        probe: from `lit_rl.models.reopened.probe_policy`.
        trial: write and compare everything, and replace nothing.

    Raises:
        ValueError: if the folder may not be replaced, or the export is not the policy when it is opened again.
    """
    with trial_folder(folder) if trial else new_folder(folder) as new:
        with no_bars():
            _write(policy, tokenizer, new, weights)
        check_reopened(new, tokenizer, probe)


def _write(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: WholeWeights) -> None:
    if (generation := policy.causal_lm.generation_config) is not None:
        mend_generation_config(generation)
        # Whatever ended a completion in training ends it in `generate`, which would otherwise run on past the turn.
        generation.eos_token_id = policy.end_tokens
        generation.stop_strings = policy.stop_strings.texts or None
    if policy.adapted and not _opens_alone(policy):
        _merged(policy, weights.model).save_pretrained(folder)
    else:
        _name_base(policy)
        with _unchanged(policy.causal_lm.config):
            policy.model.save_pretrained(folder, state_dict=dict(weights.model))  # a copy: save_pretrained empties the dict
        if policy.spec.quantization is not None:
            record_quantization(folder, policy.spec.quantization, policy.causal_lm.dtype)
    if weights.value_head:
        save_value_head(weights.value_head, folder)
    tokenizer.save_pretrained(folder)


def _opens_alone(policy: Policy) -> bool:
    """Whether peft can open an adapter's base by the name in the spec."""
    spec = policy.spec
    return spec.pretrained is not None and spec.gguf_file is None and (keeps_adapter(spec) or not is_adapter(spec.pretrained))


def _name_base(policy: Policy) -> None:
    """Name the base of an adapter so that the export opens from any working directory."""
    base = Path(policy.spec.pretrained or "").expanduser()
    if policy.adapted and base.is_dir() and not keeps_adapter(policy.spec):  # which has a name for it
        for config in policy.model.peft_config.values():
            config.base_model_name_or_path = str(base.resolve())


@contextmanager
def _unchanged(config: PretrainedConfig) -> Iterator[None]:
    """Let a config be as before after the block: ``save_pretrained`` writes precision and class of the model into it."""
    before = dict(vars(config))
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)


@torch.no_grad()
def _merged(policy: Policy, weights: dict[str, Tensor]) -> Any:
    """A new model on the CPU with adapters merged; merging in place would round the weights that training goes on with."""
    from peft import get_peft_model

    own = policy.causal_lm
    # Copies: a model writes into its configs, and the policy reads them at each step.
    config, adapter = copy.deepcopy(own.config), copy.deepcopy(policy.model.peft_config["default"])
    # Not a `deepcopy` of the model, which FSDP2 refuses. On "meta" no initial weights are drawn.
    with torch.device("meta"):
        dtype = torch.float32 if is_quantized(own) else own.dtype
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    base.to_empty(device="cpu")
    base.tie_weights()
    with seeded(0):
        model = get_peft_model(base, adapter)
    model.load_state_dict(dense_weights(policy.model, weights))
    merged = merge(model, dtype).to(own.dtype)
    merged.generation_config = own.generation_config
    return merged


def mend_generation_config(config: GenerationConfig) -> None:
    """Let transformers save a generation config that it has opened: flags of sampling need ``do_sample``.

    Raises:
        ValueError: if it refuses the config for another reason.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        before, config.do_sample = config.do_sample, True
        try:
            config.validate(strict=True)
        except ValueError as error:
            config.do_sample = before
            reason = " ".join(str(error).split("\n")[:2]) or first_line(error)
            raise ValueError(f"generation_config.json of the model cannot be saved again; mend it: {reason}") from error
        rank_zero_info("Export: generation_config gets do_sample: true, without which transformers refuses its sampling flags.")
