"""Runtime: the part of a Trainer that code outside ``training_step`` needs.

Training streams, collectors, rewards and evaluation get a runtime instead of the module or the Trainer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from lit_rl.hooks import RolloutCallback
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch


class Runtime:
    """Narrow view of a Trainer.

    Args:
        trainer: the Trainer.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self._trainer.strategy.root_device

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._trainer.global_step

    @property
    def position(self) -> int:
        """Finished micro-batches of this epoch; Lightning saves and restores the count."""
        # Lightning's index is -1 before the first micro-batch of an epoch.
        return self._trainer.fit_loop.batch_idx + 1

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self._trainer.world_size

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self._trainer.global_rank

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self._trainer.default_root_dir)

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded over processes."""
        # Only strategies that shard have a mesh.
        return self._trainer.lightning_module.device_mesh is not None

    def forward_context(self) -> AbstractContextManager[None]:
        """Precision of the run, for forwards outside ``training_step``; nothing but forwards belongs inside."""
        return self._trainer.precision_plugin.forward_context()

    def lowers_loss_scale(self) -> bool:
        """Whether the precision answers a gradient that overflowed with a lower scale of the loss (16-mixed)."""
        precision = self._trainer.precision_plugin
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        # At 1 nothing is left to lower.
        return scaler is not None and scaler.get_scale() > 1

    def on_rollout_start(self, prompts: PromptBatch) -> PromptBatch:
        """Rendered prompts after the hooks of all rollout callbacks."""
        for callback in self._rollout_callbacks():
            prompts = callback.on_rollout_start(self._trainer, self._trainer.lightning_module, prompts)
        return prompts

    def on_rollout_end(self, rollouts: Rollouts) -> Rollouts:
        """Scored rollouts after the hooks of all rollout callbacks."""
        for callback in self._rollout_callbacks():
            rollouts = callback.on_rollout_end(self._trainer, self._trainer.lightning_module, rollouts)
        return rollouts

    def _rollout_callbacks(self) -> list[RolloutCallback]:
        callbacks = self._trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, RolloutCallback)]

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        # In place under DDP: the caller's tensor is overwritten if it lies on the device already.
        return self._trainer.strategy.reduce(values.to(self.device), reduce_op="sum")

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over ranks."""
        return self._trainer.strategy.reduce(values.to(self.device), reduce_op="max")

    def gather(self, values: Tensor) -> Tensor:
        """Values (n) of all ranks, one rank after another; n may differ between ranks."""
        if self.ranks == 1:
            return values
        all_gather = self._trainer.strategy.all_gather
        counts = all_gather(torch.tensor(len(values), device=self.device))
        # Collectives need equal shapes: pad to the longest, and cut again.
        padded = torch.cat([values, values.new_zeros(int(counts.max()) - len(values))])
        return torch.cat([row[:count] for row, count in zip(all_gather(padded), counts.tolist(), strict=True)])
