"""Causal language models as policies."""

from lit_rl.models.policy import Policy
from lit_rl.models.spec import LoRASpec, PolicySpec

__all__ = ["LoRASpec", "Policy", "PolicySpec"]
