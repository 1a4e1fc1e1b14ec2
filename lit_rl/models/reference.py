"""The policy as it was when training began, for the KL penalty."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts


class Reference:
    """A frozen policy: the adapter switched off where there is one, otherwise a copy of the weights.

    It is no ``nn.Module`` and so stays out of the module's parameters, checkpoints and exports; the copy must be made
    before a checkpoint is loaded.

    Args:
        policy: the policy that training starts from.
    """

    def __init__(self, policy: Policy) -> None:
        self._live = policy if policy.spec.lora else None
        self.copy = None if policy.spec.lora else copy.deepcopy(policy).requires_grad_(False)

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> Tensor:
        """(N, T) float32 log-probabilities of the sampled tokens, at their temperature and support."""
        if self.copy is not None:
            return self.copy.score(rollouts, details=False).logprobs.float()
        assert self._live is not None
        with self._live.adapter_off():
            return self._live.score(rollouts, details=False).logprobs.float()
