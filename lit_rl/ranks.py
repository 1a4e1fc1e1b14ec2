"""Work of the first process alone, whose failure stops all processes instead of leaving them in a barrier."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl

from lit_rl.options import first_line


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], object]) -> None:
    """Run ``work`` on rank 0 while the other ranks wait; every rank must call.

    Raises:
        Exception: the error of ``work``, on rank 0.
        ValueError: with the same message, on the other ranks.
    """
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:  # raised again below, when all ranks know of it
            problem = error
    told = trainer.strategy.broadcast(None if problem is None else first_line(problem) or type(problem).__name__)
    if problem is not None:
        raise problem
    if told is not None:
        raise ValueError(told)
