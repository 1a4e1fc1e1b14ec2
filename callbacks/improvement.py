"""Improvement: accuracy before the first step and after the last."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_rl.files import write_text


class Improvement(Callback):
    """Prints a baseline before the first step, every evaluation and the improvement at the end; writes ``report.json``.

    The baseline is the sanity check over the whole validation set (``trainer.num_sanity_val_steps: -1``), which every
    logger gets at step 0.

    Args:
        monitor: metric to compare; its interval is read from the same name with ``_low`` and ``_high``.
        percent: shows the metric in percent; False for metrics that are not a share, such as ``val/matched_tokens``.
    """

    def __init__(self, monitor: str = "val/accuracy", percent: bool = True) -> None:
        self.monitor, self.percent = monitor, percent
        self.before: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        self._seconds = 0.0  # of earlier processes of this run
        self._start = 0.0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.num_sanity_val_steps != float("inf") and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                "Improvement needs a baseline on the whole validation set; set trainer.num_sanity_val_steps to -1."
            )

    def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A new run, since a resumed one has no sanity check: the report of an earlier run must not pass for its own.
        if trainer.is_global_zero:
            _report(trainer).unlink(missing_ok=True)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            if not trainer.is_global_zero:  # metrics of an evaluation are logged on one rank
                return
            names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ValueError(f"Improvement: the validation has no metric {self.monitor!r}; write one of {', '.join(names)}.")
        metrics = self._metrics(trainer)
        if not trainer.sanity_checking:
            self.after = metrics
            rank_zero_info(f"Evaluation: {self._line(metrics)}")
            return
        self.before = metrics
        rank_zero_info(f"Baseline: {self._line(metrics)}")
        # Lightning gives metrics of the sanity check to no logger, so they are logged here.
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.before is None or not trainer.is_global_zero:
            return
        if self.after is None:
            rank_zero_warn("Improvement: no evaluation followed the baseline; lower trainer.val_check_interval.")
            return
        gain = self.after["value"] - self.before["value"]
        change = f"{100 * gain:+.1f} points" if self.percent else f"{gain:+.3f}"
        rank_zero_info(f"Final: {self._line(self.after)}\nImprovement: {change}")
        report = {
            "monitor": self.monitor,
            "before": self.before,
            "after": self.after,
            "improvement": gain,
            "steps": trainer.global_step,
            "seconds": round(self._total_seconds(), 1),
        }
        write_text(_report(trainer), json.dumps(report, indent=2))

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "seconds": self._total_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A resumed run has no sanity check: its baseline is in the checkpoint alone.
        self.before, self.after, self._seconds = state["before"], state["after"], state["seconds"]

    def _total_seconds(self) -> float:
        # The clock starts with training, and a state may be asked for before.
        return self._seconds + (time.perf_counter() - self._start if self._start else 0.0)

    def _metrics(self, trainer: pl.Trainer) -> dict[str, Any]:
        names = {"value": self.monitor, "low": f"{self.monitor}_low", "high": f"{self.monitor}_high"}
        metrics = trainer.callback_metrics
        return {key: float(metrics[name]) for key, name in names.items() if name in metrics} | {"step": trainer.global_step}

    def _line(self, metrics: dict[str, Any]) -> str:
        def show(value: float) -> str:
            return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

        interval = f" ({show(metrics['low'])} to {show(metrics['high'])})" if "low" in metrics else ""
        return f"{show(metrics['value'])}{' %' if self.percent else ''}{interval} at step {metrics['step']}"


def _report(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "report.json"
