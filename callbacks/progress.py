"""Progress of a run: optimizer steps of ``trainer.max_steps``, and the time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table


class Progress(ProgressBar):
    """A line with the steps taken, the time left and the metrics of the last step; the command line's default.

    On a terminal the line stays in its place. Elsewhere, such as in a log file, a new line is printed at intervals.

    Args:
        every_seconds: seconds between two lines that are not on a terminal.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._live: Live | None = None
        self._evaluation = ""
        self._first_step, self._start, self._printed = 0, 0.0, float("-inf")

    # --- as Lightning asks ------------------------------------------------------------------------------------------

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        (self._live.console if self._live else Console()).print(*(escape(str(arg)) for arg in args))

    # --- hooks ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A resumed run has taken steps that say nothing of this machine's speed.
        self._first_step, self._start = trainer.global_step, time.monotonic()
        self._open()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close(last_line=True)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        batches = f" of {trainer.num_val_batches[dataloader_idx]}" if trainer.state.fn == "validate" else ""
        self._evaluating("baseline" if trainer.sanity_checking else "validation", batch_idx, batches)

    def on_test_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluating("test", batch_idx, f" of {trainer.num_test_batches[dataloader_idx]}")

    def on_predict_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluating("prediction", batch_idx, f" of {trainer.num_predict_batches[dataloader_idx]}")

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._evaluation = ""
        if trainer.state.fn != "fit":
            self._close()

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    # --- the line ---------------------------------------------------------------------------------------------------

    def line(self) -> str:
        """Steps, time left and metrics, as a text."""
        if not self._training:
            return self._evaluation
        step, steps = self.trainer.global_step, self._steps()
        parts = [f"step {step}" + (f" of {steps}" if steps else "")]
        taken = step - self._first_step
        if steps and taken:
            seconds = (time.monotonic() - self._start) / taken * (steps - step)
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        metrics = self.get_metrics(self.trainer, self.trainer.lightning_module)
        parts += [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float)]
        return ", ".join([*parts, *([self._evaluation] if self._evaluation else [])])

    @property
    def _training(self) -> bool:
        """Whether the run has begun to train; a validation in between is a part of it."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _steps(self) -> int:
        """Optimizer steps of the whole run; 0 if only the clock ends it."""
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        batches = trainer.num_training_batches
        epochs = trainer.max_epochs or -1
        return int(epochs * (batches // trainer.accumulate_grad_batches)) if epochs > 0 and batches != float("inf") else 0

    def _evaluating(self, name: str, batch: int, batches: str = "") -> None:
        self._evaluation = f"{name}, batch {batch + 1}{batches}"
        self._open()
        self._show()

    def _show(self) -> None:
        if self._live:
            self._live.refresh()
        elif self._enabled and time.monotonic() - self._printed >= self.every_seconds:
            self._printed = time.monotonic()
            print(self.line(), flush=True)

    def _open(self) -> None:
        if self._enabled and self._live is None and sys.stdout.isatty():
            # Whatever else is printed goes above the line.
            self._live = Live(get_renderable=self._picture, transient=False, refresh_per_second=4)
            self._live.start()

    def _close(self, last_line: bool = False) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        elif self._enabled and last_line:
            print(self.line(), flush=True)

    def _picture(self) -> Table:
        row = Table.grid(padding=(0, 1))
        steps = self._steps() if self._training else 0
        bar = [Bar(total=steps, completed=self.trainer.global_step, width=30)] if steps else []
        row.add_row(*bar, escape(self.line()))
        return row
