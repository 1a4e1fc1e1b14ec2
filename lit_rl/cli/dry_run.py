"""``lit-rl fit --dry-run``: everything that can be known before the first step, and nothing left behind.

Checks stand in the hooks ``setup``, ``on_fit_start`` and ``on_train_start`` of modules, data and callbacks. A dry run goes
through them like any run and ends at the last of them. It has no loggers, keeps no config, and answers no problem.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info

from lit_rl.text.terminal import printable

DRY_RUN = "--dry-run"


class _BeforeFirstStep(BaseException):
    """Not an error: nothing that catches errors may stop it."""


class NoLog(DummyLogger):
    """A logger for callbacks that ask for one.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str:
        return self._folder


class DryRun(Callback):
    """Ends a run before its first step."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Here: `setup` of callbacks that need a baseline has seen the option.
        trainer.num_sanity_val_steps = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning calls the module's hook after those of all callbacks, of which this is the last.
        module.on_train_start()
        raise _BeforeFirstStep


def dry_run(trainer: pl.Trainer, **kwargs: Any) -> None:
    """Run ``fit`` up to the first step, and print a summary.

    Args:
        trainer: a Trainer with the callback `DryRun`.
        kwargs: arguments of ``Trainer.fit``.
    """
    try:
        trainer.fit(**kwargs)
    except _BeforeFirstStep:
        rank_zero_info(printable(_summary(trainer, kwargs["model"], kwargs["datamodule"])))


def _summary(trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> str:
    weights = sum(weight.numel() for weight in module.parameters())
    learning = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    steps = f"{trainer.max_steps:,} steps" if trainer.max_steps > 0 else "no limit of steps"
    return (
        f"Dry run of {type(module).__name__}: no fault found. {learning:,} of {weights:,} weights learn, "
        f"{len(data.train_set):,} training and {len(data.val_set):,} validation problems, {steps}. Nothing was written."
    )
