"""Quantized linear layers by bitsandbytes: the frozen base under LoRA adapters in 4 or 8 bits (QLoRA, arXiv 2305.14314).

``nf4``: 4 bits with the quantiles of a normal distribution, one scale for 64 weights, whose scales are quantized again (double
quantization): 0.52 bytes a weight. ``int8``: one scale for each row (LLM.int8, arXiv 2208.07339, eq. 4), 1 byte a weight;
activations are not quantized, since their outliers would make a row depend on the rest of its batch.

Weights are quantized on the CPU, so that they are the same on every device. A product is computed in the precision that any
linear layer has: in the precision of ``trainer.precision`` or, without one, of its input. So sampler, learner and reference see
the same dequantized weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_rl.models.spec import Quantization

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one (nf4); bitsandbytes has kernels for these alone."""


class QuantizedLinear(nn.Linear):
    """Linear layer with a frozen quantized weight; its scales are buffers, so that checkpoints hold and strategies move them.

    Not a layer of bitsandbytes: its layers keep scales beside the weight, where a checkpoint does not find them again, cast
    biases in place, and on some processors (avx512_bf16) repack the weight for a forward pass that has no gradient.

    Args:
        shape: (out, in) features.
        bias: (out) bias of the layer; None without one.
    """

    def __init__(self, shape: torch.Size, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.register_parameter("bias", bias)

    def hold(self, weight: Tensor, **scales: Tensor) -> QuantizedLinear:
        """Take a quantized weight and its scales."""
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        for name, scale in scales.items():
            self.register_buffer(name, scale.detach())
        return self

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """(out, in) dequantized weight."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) without the bias."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        y = self.product(x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move, but do not cast: scales in half precision would be other weights."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


class NF4Linear(QuantizedLinear):
    """Weight in 4-bit NormalFloat, packed to ((out x in) / 2, 1) uint8, with double quantization."""

    absmax: Tensor
    """(out x in / 64) uint8, quantized scales."""
    nested_absmax: Tensor
    """(out x in / 64 / 256) float32, scales of the scales."""
    offset: Tensor
    """() float32, mean of the scales."""
    code: Tensor
    """(16) float32, values of the codes; not saved, as it is the same for all layers."""
    nested_code: Tensor
    """(256) float32, values of the codes of scales; not saved."""

    def __init__(self, shape: torch.Size, bias: nn.Parameter | None) -> None:
        super().__init__(shape, bias)
        for name, code in zip(("code", "nested_code"), _codes(), strict=True):
            self.register_buffer(name, code, persistent=False)

    def _state(self, dtype: torch.dtype) -> Any:
        from bitsandbytes.functional import QuantState

        nested = QuantState(self.nested_absmax, code=self.nested_code, blocksize=NESTED_BLOCK, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        return QuantState(self.absmax, shape, self.code, BLOCK, "nf4", dtype, self.offset, nested)

    def dense(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight, self._state(dtype))

    def product(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        return matmul_4bit(x, self.weight, self._state(x.dtype))


class Int8Linear(QuantizedLinear):
    """Weight (out, in) in int8."""

    scale: Tensor
    """(out) float32, largest absolute weight of each row."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        return _dense_int8(self.weight, self.scale, dtype)

    def product(self, x: Tensor) -> Tensor:
        return _Int8Product.apply(x, self.weight, self.scale)


class _Int8Product(torch.autograd.Function):
    """Product with a dequantized weight, which is dequantized again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return linear(x, _dense_int8(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ _dense_int8(weight, scale, gradient.dtype), None, None


def _dense_int8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * (scale / 127)[:, None]).to(dtype)


@cache
def _codes() -> tuple[Tensor, Tensor]:
    """Values of the 16 codes of nf4, and of the 256 codes of its scales."""
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    return get_4bit_type("nf4", device="cpu"), create_dynamic_map()


# --- whole models ------------------------------------------------------------------------------------------------


def load_quantized(source: str, method: Quantization, **options: Any) -> PreTrainedModel:
    """A pretrained model, quantized weight by weight while it is read, so that it never is in memory as a whole.

    Args:
        source: folder or name on the hub.
        method: ``nf4`` or ``int8``.
        options: of transformers' ``from_pretrained``.

    Raises:
        ValueError: if its weights are quantized already.
    """
    refuse_quantized(AutoConfig.from_pretrained(source))
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if method == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    )
    # By default transformers would take the first GPU, whatever the Trainer's strategy says.
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, device_map={"": "cpu"}, **options)
    for name, layer in list(model.named_modules()):
        if (own := _adopted(layer)) is not None:
            model.set_submodule(name, own)
    # The layers are no longer transformers' own, whose rules for saving and moving do not hold for them.
    model.hf_quantizer, model.quantization_method = None, None
    model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit = False, False, False
    del model.config.quantization_config
    return model


def refuse_quantized(config: PretrainedConfig) -> None:
    """Refuse a model whose files hold quantized weights.

    Raises:
        ValueError: for any method of quantization.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("its weights are quantized already; name the model that they were made from, and write `quantization`")


def _adopted(layer: nn.Module) -> QuantizedLinear | None:
    """The same layer with the tensors of a layer of bitsandbytes; None for any other layer."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    if isinstance(layer, Linear4bit):
        return _of_state(layer.weight, layer.weight.quant_state, layer.bias)
    if isinstance(layer, Linear8bitLt):
        return Int8Linear(layer.weight.shape, layer.bias).hold(layer.weight.data, scale=layer.weight.SCB)
    return None


def _of_state(packed: Tensor, state: Any, bias: nn.Parameter | None) -> NF4Linear:
    layer = NF4Linear(state.shape, bias)
    layer.hold(packed.data, absmax=state.absmax, nested_absmax=state.state2.absmax, offset=state.offset)
    return layer


def quantize(model: PreTrainedModel, method: Quantization) -> None:
    """Quantize a model in place: all linear layers but the head, as transformers chooses them."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) in (nn.Linear, Conv1D) and layer is not head:
            weight = layer.weight.detach().T.contiguous() if isinstance(layer, Conv1D) else layer.weight.detach()
            model.set_submodule(name, _quantized(weight, layer.bias, method))


def _quantized(weight: Tensor, bias: nn.Parameter | None, method: Quantization) -> QuantizedLinear:
    from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit

    if method == "int8":
        packed, scale, _ = int8_vectorwise_quant(weight.half())
        return Int8Linear(weight.shape, bias).hold(packed, scale=scale)
    packed, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return _of_state(packed, state, bias)


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model plain linear layers with the weights that its quantized layers stand for."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            model.set_submodule(name, plain_layer(layer, dtype))


def plain_layer(layer: QuantizedLinear, dtype: torch.dtype) -> nn.Linear:
    """Linear layer with the weight that a quantized layer stands for."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(layer.dense(dtype), requires_grad=False)
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return plain


def dense_weights(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with those of its quantized layers dequantized, in float32.

    Args:
        model: the model, for its layers.
        weights: its weights by name, of which scales are left out of the result.
    """
    dense = dict(weights)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            own = {key: dense.pop(f"{name}.{key}") for key in layer.state_dict(keep_vars=True) if key != "bias"}
            # In another layer, since the layer's own tensors may be sharded, and on a device.
            whole = type(layer)(torch.Size((layer.out_features, layer.in_features)), None).hold(**own)
            dense[f"{name}.weight"] = whole.dense(torch.float32)
    return dense


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has quantized layers."""
    return any(isinstance(layer, QuantizedLinear) for layer in model.modules())
