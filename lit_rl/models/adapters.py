"""Low-rank adapters (LoRA) by peft: put on a model, opened on their base, or merged into it.

An adapter that was trained on a quantized base belongs to the dequantized weights: on the original ones it is another model, by
the error of the quantization. So its folder records the quantization, and opening it quantizes the base anew.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rl.models.quantization import QuantizedLinear, dequantize, load_quantized, plain_layer
from lit_rl.models.spec import LoRASpec, Quantization
from lit_rl.options import check_choice, first_line

if TYPE_CHECKING:
    from peft import PeftModel

QUANTIZATION_FILE = "quantization.json"
"""File in the folder of an adapter that says how its base was quantized; without it, it was not."""

LARGE = 0.01
"""Share of all weights from which on a kind of weights is named in the report of an adapter."""


def is_adapter(source: str) -> bool:
    """Whether the folder holds a peft adapter instead of a whole model."""
    return (Path(source) / "adapter_config.json").is_file()


def base_quantization(source: str) -> Quantization | None:
    """Quantization of the base that an adapter was trained on; None for none, and for other folders.

    Raises:
        ValueError: if the adapter's folder names an unknown one.
    """
    recorded = _recorded(source)
    if recorded is None:
        return None
    check_choice(f"{Path(source) / QUANTIZATION_FILE}: `base`", recorded.get("base"), Quantization)
    method: Any = recorded["base"]
    return method


def record_quantization(folder: Path, method: Quantization, dtype: torch.dtype) -> None:
    """Write into the folder of an adapter how its base is quantized.

    Args:
        folder: the folder.
        method: the quantization.
        dtype: precision that the weights were rounded to before, and that embeddings and head have.
    """
    record = {"base": method, "dtype": str(dtype).removeprefix("torch.")}
    (folder / QUANTIZATION_FILE).write_text(json.dumps(record), encoding="utf-8")


def _recorded(source: str) -> dict[str, str] | None:
    file = Path(source) / QUANTIZATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if is_adapter(source) and file.is_file() else None


def open_base(folder: str, **options: Any) -> PreTrainedModel:
    """The base of an adapter, quantized as it was when the adapter was trained.

    Args:
        folder: folder of the adapter, which names its base.
        options: of transformers' ``from_pretrained``, for the base; ``dtype`` among them.

    Raises:
        ValueError: if the base cannot be opened.
    """
    adapter = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    name, method = adapter["base_model_name_or_path"], base_quantization(folder)
    try:
        if method is not None:
            rounded = getattr(torch, (_recorded(folder) or {}).get("dtype", "float32"))
            model = load_quantized(name, method, **options | {"dtype": rounded})
            # Not `model.to`, which would round buffers too, angles of the rope among them.
            for weight in model.parameters():
                if weight.is_floating_point():
                    weight.data = weight.data.to(options["dtype"])
            return model
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except OSError as error:
        raise ValueError(
            f"the adapter's base {name!r} cannot be opened ({first_line(error)}); "
            "put it there, or write its place into adapter_config.json"
        ) from error


def merged_adapter(folder: str, **options: Any) -> PreTrainedModel:
    """The base of an exported adapter with the adapter merged into it; what the base trains is trained.

    A quantized base is dequantized: the model is the one that the adapter was trained as, in the precision of the options.

    Args:
        folder: folder of the adapter, which names its base.
        options: of transformers' ``from_pretrained``, for the base.
    """
    from peft import PeftModel

    base = open_base(folder, **options)
    # Recorded before peft opens the adapter: it freezes the whole base.
    frozen = {name for name, weight in base.named_parameters() if not weight.requires_grad}
    if (method := base_quantization(folder)) is not None:
        frozen = set()
        rank_zero_info(
            f"{folder} was trained on a base in {method}, which is dequantized before the adapter is merged into it."
        )
    adapted = PeftModel.from_pretrained(base, folder)
    _untie(base)  # before merging, which would write the adapter of one layer into both
    model = merge(adapted, base.dtype)
    # Merging leaves the base frozen, and the optimizer would have nothing to train.
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    return model


def merge(adapted: Any, dtype: torch.dtype) -> Any:
    """The base of a peft model with the adapter merged into it; layers of a quantized base become plain ones.

    Args:
        adapted: the peft model, which is used up.
        dtype: precision of the layers that were quantized.
    """
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, QuantizedLinear):
            # One layer at a time in full precision: rounded to `dtype` before the sum, small updates would be lost in part.
            layer.base_layer = plain_layer(layer.base_layer, torch.float32)
            layer.merge()
            layer.base_layer.to(dtype)
    dequantize(adapted, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        return adapted.merge_and_unload()


def open_adapter(model: PreTrainedModel, folder: str, lora: LoRASpec | None) -> nn.Module:
    """An exported adapter on its quantized base, apart from it: merged and quantized again, its small updates would be lost.

    Args:
        model: the base.
        folder: folder of the adapter.
        lora: the adapter goes on learning under these options; None opens it frozen, for evaluation.

    Raises:
        ValueError: if the options are not the adapter's own.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(folder)
    if lora is not None:
        if (lora.r, lora.alpha) != (config.r, config.lora_alpha):
            raise ValueError(
                f"model.policy.lora has r {lora.r} and alpha {lora.alpha}, but the adapter in {folder!r}, which goes on "
                f"learning on its quantized base, has r {config.r} and alpha {config.lora_alpha}; write these, or leave "
                "`quantization` out."
            )
        config.lora_dropout = lora.dropout
    adapted = PeftModel.from_pretrained(model, folder, config=config, is_trainable=lora is not None)
    _untie(model)
    rank_zero_info(f"The adapter in {folder} " + ("goes on learning." if lora else "stays apart from its quantized base."))
    return adapted


def is_new_adapter(adapted: nn.Module) -> bool:
    """Whether an adapter changes nothing yet: its second factors are 0 at first."""
    return not any(bool(weight.any()) for name, weight in adapted.named_parameters() if "lora_" in name and "_B" in name)


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
    # A byte holds two weights in 4 bits.
    quantized = {name: layer for name, layer in base.named_modules() if isinstance(layer, QuantizedLinear)}
    sizes |= {f"{name}.weight": layer.out_features * layer.in_features for name, layer in quantized.items()}
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
