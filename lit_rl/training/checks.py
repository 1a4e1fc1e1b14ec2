"""Checks before the first step: each refuses a Trainer option that cannot work, in one line that says what to write instead."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import FSDPStrategy


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse strategies and callbacks that cannot work with training streams or with clipping by norm."""
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("trainer.strategy fsdp cannot clip gradients by norm; write --trainer.strategy fsdp2.")
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "GradientAccumulationScheduler changes the batch plan while it runs; "
            "remove it and set trainer.accumulate_grad_batches."
        )


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
        "trainer.limit_train_batches": trainer.num_training_batches,
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
