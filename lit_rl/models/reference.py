"""Reference policy: the policy as it was when training began, for the KL penalty."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lit_rl.models.adapters import is_new_adapter
from lit_rl.models.ema import WeightAverage
from lit_rl.models.policy import Policy
from lit_rl.models.sources import fingerprint
from lit_rl.rollouts import Rollouts


class Reference:
    """Frozen policy: the policy itself with its new adapter switched off if it has one, otherwise a copy of it.

    Of an adapter that was learned before, the weights that it begins with are kept and put in its place.

    Not an ``nn.Module``, so that parameters, checkpoints and exports do not hold the copy. Make it before a checkpoint is
    loaded.

    Args:
        policy: the policy that training starts from.
        sharded: whether the policy will be sharded.

    Raises:
        ValueError: if a sharded policy has an adapter that was learned before.
    """

    def __init__(self, policy: Policy, sharded: bool = False) -> None:
        # Made before compilation and sharding: the copy of a compiled layer would run the original's forward, and FSDP2 refuses
        # `deepcopy`. The tokenizer is shared, since a copy of a large one takes seconds.
        shared = {id(policy.tokenizer): policy.tokenizer}
        self.copy = None if policy.adapted else copy.deepcopy(policy, shared).requires_grad_(False)
        self._policy = policy if self.copy is None else self.copy
        learned = policy.adapted and not is_new_adapter(policy.model)
        self._start = WeightAverage(decay=1.0) if learned else None
        if self._start is not None:
            if sharded:
                raise ValueError(
                    "the KL penalty of an adapter that goes on learning does not work with fsdp2; write trainer.strategy ddp, "
                    "or leave model.policy.quantization out, which merges the adapter."
                )
            self._start.update(policy.model, 0)
        # Checkpoints hold a base under an adapter, but not the copy: a run that goes on must find the same weights again.
        self.fingerprint = fingerprint(self._policy) if self.copy is not None or learned else None

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
        with self._policy.adapter_off() if self._start is None else self._start.in_place_of(self._policy.model):
            return self._policy.score(rollouts, details=False).logprobs.float()
