"""Curriculum: harder problems once the present ones are mastered."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


@runtime_checkable
class HasLevels(Protocol):
    """Data module with levels of difficulty, such as `Arithmetic`."""

    levels: list[Any]

    def set_level(self, level: int) -> None: ...


class Curriculum(Callback):
    """Raises the data module's level at the start of an epoch if the mean over the last epoch passed a threshold.

    Args:
        threshold: mean that must be reached.
        monitor: training metric, averaged over the epoch's optimizer steps.
    """

    def __init__(self, threshold: float = 0.9, monitor: str = "reward") -> None:
        self.threshold, self.monitor = threshold, monitor
        self.level = 0
        self._total, self._count = 0.0, 0
        self._step = 0  # the last optimizer step that was counted

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._data(trainer)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not in `on_fit_start`: strategies that shard restore callbacks after it.
        self._data(trainer).set_level(self.level)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = self._data(trainer)
        # Logged metrics are the same on all ranks, so all ranks change the level together.
        passed = self._count > 0 and self._total / self._count >= self.threshold
        if passed and self.level + 1 < len(data.levels):
            # Before the first batch of the epoch, for which new workers copy the data.
            self.level += 1
            data.set_level(self.level)
            rank_zero_info(f"Curriculum: level {self.level} of {len(data.levels) - 1} from step {trainer.global_step} on")
        self._total, self._count = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Once per optimizer step: at other micro-batches the metric is still the value of the last step.
        if trainer.global_step == self._step or self.monitor not in trainer.callback_metrics:
            return
        self._step = trainer.global_step
        self._total += float(trainer.callback_metrics[self.monitor])
        self._count += 1
        module.log("curriculum/level", float(self.level))

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "total": self._total, "count": self._count, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self._step = state["level"], state["step"]
        self._total, self._count = state["total"], state["count"]

    def _data(self, trainer: pl.Trainer) -> HasLevels:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, HasLevels):
            raise ValueError(f"Curriculum needs data with levels, such as Arithmetic; {type(data).__name__} has none.")
        return data
