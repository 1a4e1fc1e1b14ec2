"""Specs: model, tokenizer and adapters of a policy, as a config names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lit_rl.options import check_choice

Quantization = Literal["nf4", "int8"]


@dataclass
class LoRASpec:
    """Low-rank adapters (LoRA, arXiv 2106.09685) by peft."""

    r: int = 16
    """Rank of the update."""
    alpha: int = 32
    """Scale of the update, which is multiplied by alpha / r."""
    dropout: float = 0.0
    """Probability of dropout before the adapter while SFT learns; must be 0 for reinforcement learning."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; ``all-linear``: every linear layer but the head."""
    target_parameters: list[str] | None = None
    """Names of weights outside linear layers that get an adapter, e.g. [experts.gate_up_proj, experts.down_proj]: experts of
    a mixture are often one weight of three dimensions, which ``all-linear`` leaves out."""


@dataclass
class PolicySpec:
    """Model and tokenizer: ``pretrained``, or from scratch by ``config`` (with or without ``size``)."""

    pretrained: str | None = None
    """Hugging Face name or folder of a model, or of a peft adapter, which is merged into its base. It overrides ``config``,
    so that ``--model.policy.pretrained`` continues a model that a config began from scratch."""
    gguf_file: str | None = None
    """GGUF file in ``pretrained``, whose weights are unpacked to ``dtype``; some architectures need the package ``gguf``."""
    config: dict[str, Any] | None = None
    """Model from scratch: ``model_type`` and any options of its config, e.g. {model_type: llama, hidden_size: 128}."""
    size: Literal["tiny", "small", "medium", "large"] | None = None
    """Width, heads and layers of a model from scratch: 32/2/2, 64/4/4, 512/8/8 or 768/8/8. Options in ``config`` win."""
    tokenizer: str | None = None
    """Hugging Face name or folder of a tokenizer, or ``arithmetic``, ``reasoning``, ``bytes``, ``stories``, ``rpn13``,
    ``rpn113`` (RPN by its modulus); default: the tokenizer beside ``pretrained``."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens, as text, that end a completion beside the tokenizer's end token, the chat template's end of turn and those that
    the model names; e.g. a line break."""
    stop_strings: list[str] = field(default_factory=list)
    """Texts of any number of tokens that end a completion, e.g. ["\\n\\nQuestion:"] for a model that never learned to end. The
    text that is judged ends before them; their tokens stay in the completion that is learned."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the weights. Keep float32, and choose the precision of computations by ``trainer.precision``: weights that
    learn must have it. Under ``lora`` the base may be bfloat16, since the adapters stay float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    """Attention implementation of transformers; default: the best that the model type has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time. Models that cannot be packed then run
    each prompt once per row."""
    quantization: Quantization | None = None
    """Frozen linear layers of bitsandbytes in 4 bits (``nf4`` with double quantization, QLoRA, arXiv 2305.14314: 0.52 bytes a
    weight) or 8 bits (``int8``: 1 byte), for training under ``lora`` and for evaluation; embeddings and head keep ``dtype``.
    Products have the precision of ``trainer.precision``; write bf16-mixed on a GPU. An adapter in ``pretrained`` that was
    trained on a base of the same quantization stays apart from it, and goes on learning under a ``lora`` of its own rank;
    default: no quantization."""
    lora: LoRASpec | None = None
    """Low-rank adapters to train instead of all weights; default: all weights are trained."""
    compile: bool = False
    """Compile the learner's layers and the decoding step by torch.compile: less time a step, after a wait at the start. A
    resumed run is compiled anew and may round differently."""
    unshard: Literal["rollout", "layer"] = "rollout"
    """Unsharding of weights (fsdp2) while completions are generated: whole on every rank for the length of a ``rollout``, or
    ``layer`` by layer at each token, which is slower but needs less memory."""

    def __post_init__(self) -> None:
        if self.pretrained is None and self.config is None:
            raise ValueError("model.policy: give `pretrained` (a name or folder) or `config` (a model from scratch).")
        if self.pretrained is None and not isinstance((self.config or {}).get("model_type"), str):
            raise ValueError("model.policy.config: `model_type` is missing; write for example {model_type: llama}.")
        if self.gguf_file and self.pretrained is None:
            raise ValueError("model.policy.gguf_file is a file in `pretrained`, which is missing; write a name or folder.")
        if self.pretrained is None and self.tokenizer is None:
            raise ValueError("model.policy.tokenizer is missing: a model from scratch needs one, for example `arithmetic`.")
        if self.quantization is not None:
            check_choice("model.policy.quantization", self.quantization, Quantization)
        if self.quantization and self.dtype == "float64":
            raise ValueError("model.policy.quantization computes in float32 at most; write dtype: float32 or bfloat16.")
        if self.quantization and self.compile:
            raise ValueError("model.policy.quantization and compile do not go together; write compile: false.")
