"""Hooks that reinforcement learning adds to Lightning's callbacks."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch


class RolloutCallback(Callback):
    """Callback that may change the prompts of a rollout and its scored completions.

    A hook gets data as an argument and returns the data, changed or not. State that outlives a hook belongs into
    ``state_dict``. Both hooks run on every rank, and all ranks must return equally many rows.
    """

    def on_rollout_start(self, trainer: pl.Trainer, module: pl.LightningModule, prompts: PromptBatch) -> PromptBatch:
        """Before sampling: this rank's prompts."""
        return prompts

    def on_rollout_end(self, trainer: pl.Trainer, module: pl.LightningModule, rollouts: Rollouts) -> Rollouts:
        """After scoring, before advantages: this rank's rollouts."""
        return rollouts
