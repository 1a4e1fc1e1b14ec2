"""Capabilities: shortcuts that a model computes exactly, so that they may be taken for speed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from transformers import PreTrainedModel

from lit_rl.models.spec import PolicySpec


@dataclass(frozen=True)
class Capabilities:
    """Properties of a model that policy and sampler ask for; `lit_rl.sampling.check` tries the last two at the start."""

    takes_positions: bool
    """The model takes a position for each token; models with ALiBi do not."""
    shares_prompts: bool
    """The cache of a prompt carries gradient, so the learner runs each prompt once per group."""
    shares_keys: bool = False
    """Decoding may hold a prompt's keys once per group (`lit_rl.kernels.shared_prompts`)."""
    packs: bool = False
    """Rows may be packed into one sequence without padding (`lit_rl.kernels.packing`)."""

    @classmethod
    def declared(cls, spec: PolicySpec, model: PreTrainedModel) -> Capabilities:
        """Capabilities that config and signature of a model tell; the others have to be tried."""
        # Linear attention writes its state in place; the backward pass through a shared prompt would read changed values.
        linear = "linear_attention" in (getattr(model.config, "layer_types", None) or ())
        # With gradient checkpointing transformers switches the cache off while the model is in train mode.
        return cls(
            takes_positions="position_ids" in inspect.signature(model.get_decoder().forward).parameters,
            shares_prompts=not spec.gradient_checkpointing and not linear,
        )
