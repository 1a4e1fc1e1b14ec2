"""Checks before the first step: each refuses a Trainer option that cannot work, in one line that says what to write instead."""

from __future__ import annotations

import os

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

TRIALS = (
    "tries values in runs of a few steps, which would move the data of the real one; "
    "remove it, and write model.optimizer.lr and data.batch_size."
)
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "changes the batch plan while it runs; remove it and set trainer.accumulate_grad_batches.",
    # It copies the module in `setup`.
    StochasticWeightAveraging: "averages a module that has no weights yet; write EMAWeightAveraging.",
    LearningRateFinder: TRIALS,
    BatchSizeFinder: TRIALS,
}
"""Callbacks that cannot work, and what their line says."""


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse strategies and callbacks that cannot work with training streams or with clipping by norm."""
    _check_strategy(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ValueError(f"{kind.__name__} {reason}")


def _check_strategy(trainer: pl.Trainer) -> None:
    """Refuse every strategy but those in which all ranks are known to learn one model from all data."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        ranks = strategy.device_mesh["data_parallel"].size()
        if ranks != trainer.world_size:
            raise ValueError(
                f"trainer.strategy ModelParallelStrategy shares the data over {ranks} of {trainer.world_size} processes, and "
                "the others' gradients would be lost; write --trainer.strategy fsdp2."
            )
    elif not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        # FSDP (the older one) cannot clip by norm, DeepSpeed accumulates and clips by itself.
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} does not work with lit-rl; write ddp, or fsdp2 for sharded weights."
        )
    if trainer.world_size == 1 and torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, and the Trainer knows of one: each would train a model of "
            "its own; write --trainer.devices as many as processes on a machine."
        )


def check_data(trainer: pl.Trainer) -> None:
    """Refuse loaders without a data module."""
    if trainer.datamodule is None:  # type: ignore[attr-defined]
        raise ValueError("trainer.fit needs a data module of lit_rl: write trainer.fit(module, datamodule=...), not loaders.")


def check_precision(trainer: pl.Trainer) -> None:
    """Refuse a precision in which training goes wrong."""
    # Steps at a usual learning rate round to nothing in bfloat16, and overflow in float16.
    if trainer.precision in ("bf16-true", "16-true"):
        raise ValueError(
            f"trainer.precision {trainer.precision} keeps the weights that learn in half precision; write bf16-mixed, "
            "which computes in bfloat16 and learns in float32."
        )
    if trainer.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise ValueError("trainer.precision 16-mixed needs a GPU; write bf16-mixed on a CPU.")


def check_intervals(trainer: pl.Trainer, micro_batches: int) -> None:
    """Refuse epochs and validations that would begin between the micro-batches of one batch of prompts."""
    # A trial run takes few micro-batches on purpose.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    counts = {
        "trainer.overfit_batches" if trainer.overfit_batches else "trainer.limit_train_batches": trainer.num_training_batches,  # type: ignore[attr-defined]
        "trainer.val_check_interval": trainer.val_check_batch if trainer.enable_validation else micro_batches,
    }
    for name, count in counts.items():
        # None: validation by the clock. inf: no limit.
        if count not in (None, float("inf")) and count % micro_batches:
            below = int(count // micro_batches * micro_batches) or micro_batches
            raise ValueError(
                f"{name} comes to {count} micro-batches, but a batch of prompts becomes {micro_batches}; "
                f"write a multiple of it, for example {below} or {below + micro_batches}."
            )


def check_equal_work(problems: int, ranks: int) -> None:
    """Refuse validation problems that ranks cannot share equally, if each forward pass is one of all ranks."""
    # A rank with fewer problems runs fewer forwards, and the others would wait for it in a collective.
    if problems % ranks:
        raise ValueError(
            f"model.policy.unshard layer needs equal work on every rank, but {problems} problems "
            f"do not divide over {ranks} ranks."
        )


def check_one_loader(trainer: pl.Trainer) -> None:
    """Refuse several loaders in one evaluation: its problems are counted together."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.predict_dataloaders if trainer.predicting else None
    loaders = trainer.val_dataloaders if loaders is None else loaders
    if isinstance(loaders, list | tuple | dict) and len(loaders) > 1:
        raise ValueError(
            f"{len(loaders)} loaders for one evaluation, whose problems would be counted together; give one, and evaluate "
            "other problems by a run of lit-rl validate or test each."
        )
