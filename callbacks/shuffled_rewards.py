"""Negative control of an experiment: rewards without relation to the completions that earned them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from lit_rl.hooks import RolloutCallback
from lit_rl.rollouts import Rollouts


class ShuffledRewards(RolloutCallback):
    """Shuffles the rewards of each rollout among all its completions on a rank.

    A run that improves under it owes its gain to something other than its reward. ``reward`` in the log is then the mean of
    shuffled rewards; ``rewards/<name>/mean`` stays true.

    Args:
        seed: seeds the permutations.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rollouts = 0

    def on_rollout_end(self, trainer: pl.Trainer, module: pl.LightningModule, rollouts: Rollouts) -> Rollouts:
        # Keyed by the number of the rollout, so that a resumed run draws the same permutations.
        order = np.random.default_rng([self.seed, self.rollouts, trainer.global_rank]).permutation(len(rollouts))
        # Across groups too: within a group a reward would keep its prompt. Parts stay as they are. (N)
        rollouts.rewards = rollouts.rewards[torch.from_numpy(order).to(rollouts.rewards.device)]
        self.rollouts += 1
        return rollouts

    def state_dict(self) -> dict[str, Any]:
        return {"rollouts": self.rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollouts = state["rollouts"]
