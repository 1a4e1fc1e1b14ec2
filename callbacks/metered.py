"""Base of callbacks that log metrics of their own."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lit_rl.hooks import RolloutCallback
from lit_rl.training.stream import MicroBatch


class MeteredCallback(RolloutCallback):
    """Rollout callback whose ``metrics`` are logged with every optimizer step and kept in checkpoints.

    A rollout serves several steps, so a resumed run must log what the interrupted one had found out about it.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: MicroBatch[Any], batch_idx: int
    ) -> None:
        # Not in the rollout hooks: inside the stream `log` raises. Earlier micro-batches would be overwritten.
        if batch.last:
            module.log_dict(self.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics = state["metrics"]
