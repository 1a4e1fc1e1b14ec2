"""Specs of a policy: the model, its tokenizer and its adapters, as a config names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class LoRASpec:
    """Low-rank adapters (arXiv 2106.09685) by peft."""

    r: int = 16
    """Rank of the update."""
    alpha: int = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapter; must be 0 for reinforcement learning."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: names, or ``all-linear`` for every linear layer but the head."""


@dataclass
class PolicySpec:
    """The model that learns: ``pretrained``, or from scratch by ``config`` (with or without ``size``)."""

    pretrained: str | None = None
    """A Hugging Face name or a folder: a whole model, or a peft adapter, which is merged into its base. It goes before
    ``config``, so that ``--model.policy.pretrained`` continues what a config began from scratch."""
    config: dict[str, Any] | None = None
    """A model from scratch: ``model_type`` and any option of that type's config, e.g. {model_type: llama, hidden_size: 128}."""
    size: Literal["tiny", "small", "medium", "large"] | None = None
    """Width, heads and depth for ``config``: 32/2/2, 64/4/4, 512/8/8, 768/8/8. What ``config`` names itself wins."""
    tokenizer: str | None = None
    """A Hugging Face name or folder, ``arithmetic``, ``reasoning``, ``bytes``, ``rpn13`` or ``rpn113`` (RPN by its modulus);
    default: the one beside ``pretrained``."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights. Keep float32 and let ``trainer.precision`` choose what to compute in."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    """Attention implementation of transformers; none: the best that the model type has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time; models that
    cannot be packed then run prompts once per row."""
    lora: LoRASpec | None = None
    """Train low-rank adapters instead of all weights."""
    compile: bool = False
    """Run the learner's layers and the decoding step through torch.compile: less time a step, after a wait at the start. A
    resumed run is compiled anew and may round differently."""
    unshard: Literal["rollout", "layer"] = "rollout"
    """Sharded weights (fsdp2) while completions are generated: whole on every rank for the length of a ``rollout``, or
    ``layer`` by layer at each token, slower, where they do not fit."""

    def __post_init__(self) -> None:
        if self.pretrained is None and self.config is None:
            raise ValueError("model.policy: give `pretrained` (a name or folder) or `config` (a model from scratch).")
        if self.pretrained is None and "model_type" not in (self.config or {}):
            raise ValueError("model.policy.config: `model_type` is missing; write for example {model_type: llama}.")
        if self.pretrained is None and self.tokenizer is None:
            raise ValueError("model.policy.tokenizer is missing: a model from scratch needs one, for example `arithmetic`.")
