"""Reference policy: the policy as it was when training began, for the KL penalty."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lit_rl.models.policy import Policy
from lit_rl.models.sources import fingerprint
from lit_rl.rollouts import Rollouts


class Reference:
    """Frozen policy: the policy itself with its adapter switched off if it has one, otherwise a copy of it.

    Not an ``nn.Module``, so that parameters, checkpoints and exports do not hold the copy. Make it before a checkpoint is
    loaded.

    Args:
        policy: the policy that training starts from.
    """

    def __init__(self, policy: Policy) -> None:
        # Made before compilation and sharding: the copy of a compiled layer would run the original's forward, and FSDP2 refuses
        # `deepcopy`.
        self.copy = None if policy.spec.lora else copy.deepcopy(policy).requires_grad_(False)
        self._policy = policy if self.copy is None else self.copy
        # Checkpoints hold a base under an adapter, but not the copy: a run that goes on must find the same weights again.
        self.fingerprint = None if self.copy is None else fingerprint(self.copy)

    def check_unchanged(self, saved: str | None) -> None:
        """Refuse to go on with another reference than the run began with.

        Args:
            saved: fingerprint in the checkpoint; None if it holds none.

        Raises:
            ValueError: if the weights are others.
        """
        if saved is not None and self.fingerprint is not None and saved != self.fingerprint:
            source = self._policy.spec.pretrained
            by_seed = "a model from scratch by another seed"
            where = by_seed if source is None else f"model.policy.pretrained {source!r}, which changed"
            raise ValueError(
                f"the reference of the KL penalty is not the model that this run began with ({where}); "
                "put the earlier weights back, or start a new run."
            )

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> Tensor:
        """(N, T) float32 log-probabilities of the sampled tokens, at their temperature and support."""
        with self._policy.adapter_off():
            return self._policy.score(rollouts, details=False).logprobs.float()
