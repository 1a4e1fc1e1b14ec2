"""Capabilities: what a model was found to compute exactly, and so may be used for speed."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from lit_rl.models.spec import PolicySpec


@dataclass(frozen=True)
class Capabilities:
    """Shortcuts that a model allows; `lit_rl.sampling.check` tries them at the start."""

    shares_prompts: bool = False
    """The cache of a prompt carries gradient, so that the learner runs each prompt once."""
    shares_keys: bool = False
    """Decoding may hold the keys of a prompt once per group (`lit_rl.kernels.shared_prompts`)."""
    packs: bool = False
    """Rows may be packed into one sequence without padding (`lit_rl.kernels.packing`)."""

    @classmethod
    def from_config(cls, spec: PolicySpec, config: PretrainedConfig) -> Capabilities:
        """What a model's config says of itself; everything else has to be tried."""
        # Linear attention writes its state in place, which the backward pass of a shared prompt cannot follow.
        linear = "linear_attention" in (getattr(config, "layer_types", None) or ())
        return cls(shares_prompts=not spec.gradient_checkpointing and not linear)
