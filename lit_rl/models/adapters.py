"""Low-rank adapters (LoRA) by peft: put on a model, or merged into the base that they were trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rl.models.spec import LoRASpec
from lit_rl.options import first_line

if TYPE_CHECKING:
    from peft import PeftModel

LARGE = 0.01
"""Share of all weights from which on a kind of weights is named in the report of an adapter."""


def is_adapter(source: str) -> bool:
    """Whether the folder holds a peft adapter instead of a whole model."""
    return (Path(source) / "adapter_config.json").is_file()


def merged_adapter(folder: str, **options: Any) -> PreTrainedModel:
    """The base of an exported adapter with the adapter merged into it; what the base trains is trained.

    Args:
        folder: folder of the adapter, which names its base.
        options: of transformers' ``from_pretrained``, for the base.
    """
    from peft import PeftModel

    adapter = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    name = adapter["base_model_name_or_path"]
    try:
        base = AutoModelForCausalLM.from_pretrained(name, **options)
    except OSError as error:
        raise ValueError(
            f"the adapter's base {name!r} cannot be opened ({first_line(error)}); "
            "put it there, or write its place into adapter_config.json"
        ) from error
    # Recorded before peft opens the adapter: it freezes the whole base.
    frozen = {name for name, weight in base.named_parameters() if not weight.requires_grad}
    adapted = PeftModel.from_pretrained(base, folder)
    _untie(base)  # before merging, which would write the adapter of one layer into both
    model: Any = adapted.merge_and_unload()
    # Merging leaves the base frozen, and the optimizer would have nothing to train.
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    return model


def add_adapter(model: PreTrainedModel, lora: LoRASpec) -> nn.Module:
    """The model with a new adapter, which alone is trained; one line says which weights have none.

    Raises:
        ValueError: if no weight matches the names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        target_parameters=lora.target_parameters,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    # peft passes over a name that matches nothing, and the experts would silently stay as they are.
    for name in lora.target_parameters or []:
        if not any(weight.endswith(f".{name}") for weight in _adapted_weights(model)):
            raise ValueError(f"model.policy.lora.target_parameters: the model has no weight whose name ends with {name!r}.")
    _untie(model)
    rank_zero_info(adapter_report(adapted))
    return adapted


def adapter_report(model: PeftModel) -> str:
    """One line: the kinds of weights that have an adapter, and the large ones that have none, with their share."""
    base = model.get_base_model()
    adapted = _adapted_weights(base)
    sizes = {name: weight.numel() for name, weight in base.named_parameters() if "lora_" not in name}
    total, without = sum(sizes.values()), Counter[str]()
    for name, size in sizes.items():
        if _own_name(name) not in adapted:
            without[_kind(name)] += size
    large = ", ".join(f"{kind} {size / total:.0%}" for kind, size in without.most_common() if size >= LARGE * total)
    named = ", ".join(dict.fromkeys(_kind(name) for name in adapted))
    share = 1 - without.total() / total
    return f"LoRA: adapters on {named} ({share:.0%} of the weights); without an adapter: {large or 'small weights'}"


def _adapted_weights(model: nn.Module) -> list[str]:
    """Names of the weights that have an adapter, as they were before it."""
    from peft.tuners.lora import LoraLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    # An adapter on a parameter wraps the module that has it, once for each of its parameters.
    return [_own_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}") for name, layer in layers]


def _own_name(name: str) -> str:
    return name.replace(".base_layer", "")


def _kind(name: str) -> str:
    """Name of a weight without the numbers of layers: ``self_attn.q_proj``."""
    parts = [part for part in _own_name(name).split(".") if not part.isdigit() and part != "weight"]
    return ".".join(parts[-2:])


def _untie(model: PreTrainedModel) -> None:
    """Give the head a weight of its own, if it shares one with the embeddings and an adapter changes one of them.

    Merged into a shared weight, the adapter of one would change the other too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = [model.get_output_embeddings(), model.get_input_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper) for layer in layers):
        return
    head, embeddings = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    # In the config too: an export that says "tied" would drop the head and open with the embeddings in its place.
    model.config.tie_word_embeddings = False
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
