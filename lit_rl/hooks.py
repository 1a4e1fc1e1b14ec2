"""The two hooks that reinforcement learning adds to Lightning's callbacks."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch


class RolloutCallback(Callback):
    """A callback that may change what goes into a rollout and what comes out of it.

    It gets data as an argument and returns it, changed or not. What it must remember belongs into its ``state_dict``.
    Both hooks run on every rank; each rank must return as many rows as every other.
    """

    def on_rollout_start(self, trainer: pl.Trainer, module: pl.LightningModule, prompts: PromptBatch) -> PromptBatch:
        """Before sampling: this rank's prompts."""
        return prompts

    def on_rollout_end(self, trainer: pl.Trainer, module: pl.LightningModule, rollouts: Rollouts) -> Rollouts:
        """After scoring, before advantages: this rank's rollouts."""
        return rollouts
