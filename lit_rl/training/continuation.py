"""A resumed run does what the killed one had left to do, and its files hold each step once.

Lightning writes a checkpoint before the metrics of the same step are logged and before the validation that is due at it, and
forgets both on a resume; at the last step it also forgets everything that happens at the end of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities import rank_zero_info

from lit_rl.training.metrics_log import MetricsLog


class FitLoop(_FitLoop):
    """Lightning's fit loop; on a resume it validates if that was due, and it begins and ends a run without steps left."""

    @property
    def skip(self) -> bool:
        # Entered without a step to take, the loop still calls `on_train_start` and `on_train_end`.
        nothing_to_do = self.max_batches == 0 or self.trainer.limit_train_batches == 0
        return super().skip and (nothing_to_do or not self._loaded_from_state_dict)

    def reset(self) -> None:
        if self._loaded_from_state_dict:
            # Before Lightning changes its counters, which are now as they were at the checkpoint.
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Continuation):
                    callback.catch_up(self.trainer, self)
        super().reset()

    def validation_due(self) -> bool:
        """Whether the batch before the checkpoint is one after which this Trainer validates."""
        return self.epoch_loop._should_check_val_fx(self._data_fetcher)  # type: ignore[arg-type]

    def validate(self) -> None:
        """Validate as between two batches."""
        val_loop, trainer = self.epoch_loop.val_loop, self.trainer
        # Whole: a validation that broke off begins anew, since what it had counted is lost.
        val_loop.restarting = False
        val_loop.batch_progress.reset()
        trainer.validating = True
        val_loop.run()
        trainer.training = True


class Continuation(Callback):
    """Keeps in checkpoints what is not done yet at their step, and does it on a resume."""

    def __init__(self) -> None:
        self._validated = 0  # micro-batches that the run had taken at its last validation
        self._unlogged: dict[str, Any] | None = None
        self._rows: int | None = None  # in the CSV log, as of the checkpoint
        self._resumed = False

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.fit_loop.total_batch_idx + 1

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._resumed:
            # The step that metrics are logged at. Lightning's count depends on the hook in which the checkpoint was written.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._resumed = False

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        logs = [logger for logger in trainer.loggers if isinstance(logger, MetricsLog)]
        checkpoint["continuation"] = {
            "validated": self._validated,
            "unlogged": _unlogged(trainer),
            "rows": logs[0].rows() if logs else None,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("continuation")
        if state is None:
            # A checkpoint of an earlier version says nothing about its validation: taken for done, as it was then.
            state = {"validated": None, "unlogged": None, "rows": None}
        self._validated, self._unlogged, self._rows = state["validated"], state["unlogged"], state["rows"]

    def catch_up(self, trainer: pl.Trainer, loop: FitLoop) -> None:
        """Do what the run had left to do at the checkpoint that it was resumed from."""
        self._resumed = True
        _take_over_checkpoints(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog) and self._rows is not None:
                logger.cut(self._rows)
            if self._unlogged is not None:
                logger.log_metrics(dict(self._unlogged["metrics"]), self._unlogged["step"])
                logger.save()
        if self._validated is not None and self._validated != loop.total_batch_idx + 1 and loop.validation_due():
            rank_zero_info(f"The validation at step {trainer.global_step} was not finished; it runs now.")
            loop.epoch_loop._batches_that_stepped = trainer.global_step - 1
            loop.validate()


def keep_whole(trainer: pl.Trainer) -> Continuation:
    """Give a Trainer the parts that resume a run without a gap, once."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Continuation):
            return callback
    callback = Continuation()
    # First, so that a checkpoint that another callback writes after a validation knows of the validation.
    trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
    if type(trainer.fit_loop) is _FitLoop:
        # Not a new loop: this one holds what the Trainer was given already.
        trainer.fit_loop.__class__ = FitLoop
    return callback


def _unlogged(trainer: pl.Trainer) -> dict[str, Any] | None:
    """Step and metrics that Lightning logs only after the hooks of the current batch, in one of which it may be now."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress.current
    connector = trainer._logger_connector
    inside = trainer.training and progress.processed == progress.completed + 1 and connector._first_loop_iter is not None
    if not inside or loop._should_accumulate() or not connector.should_update_logs:
        return None
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {"step": loop._batches_that_stepped, "metrics": metrics | {"epoch": trainer.current_epoch}} if metrics else None


def _take_over_checkpoints(trainer: pl.Trainer) -> None:
    """Let each ModelCheckpoint that goes on in its folder write over its own files instead of beside them."""
    resumed_from = Path(trainer.ckpt_path or "").resolve()
    for saver in trainer.checkpoint_callbacks:
        if not isinstance(saver, ModelCheckpoint) or saver.dirpath is None:
            continue
        folder = Path(saver.dirpath).resolve()
        known = [resumed_from, *(Path(path).resolve() for path in (saver.best_model_path, saver.last_model_path) if path)]
        if any(path.parent == folder for path in known):
            # A file that a killed process wrote after this checkpoint comes again, the same to the last bit.
            saver._enable_version_counter = False
        if resumed_from.parent == folder:
            saver._last_checkpoint_saved, saver._last_global_step_saved = str(resumed_from), trainer.global_step
