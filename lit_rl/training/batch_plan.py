"""Batch plan: numbers of prompts, rows, steps and micro-batches of a run, checked and shown before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of a batch of prompts, and of its minibatches and micro-batches; over all ranks if not said otherwise.

    Args:
        prompts: prompts in a batch.
        ranks: processes that share the prompts.
        group_size: G, completions per prompt; 1 for supervised training.
        epochs: passes over the batch.
        minibatches: optimizer steps per pass.
        accumulate: micro-batches per optimizer step (``trainer.accumulate_grad_batches``).

    Raises:
        ValueError: if the sizes do not divide; the message names the nearest numbers of prompts that do.
    """

    prompts: int
    ranks: int
    group_size: int
    epochs: int
    minibatches: int
    accumulate: int

    def __post_init__(self) -> None:
        unit = self.ranks * self.minibatches
        if self.prompts % unit or self.prompts < unit * self.accumulate:
            low, high = self._nearest(unit)
            raise ValueError(
                f"data.batch_size {self.prompts} does not divide into {self.ranks} rank(s) x {self.minibatches} minibatch(es) "
                f"with at least {self.accumulate} prompt(s) each for trainer.accumulate_grad_batches; "
                f"the nearest that do: {low} and {high}."
            )

    def _nearest(self, unit: int) -> tuple[int, int]:
        """Next smaller and next larger number of prompts that divides."""
        smallest = unit * self.accumulate
        # Both are at least the smallest plan: rounding down alone could propose 0 prompts.
        below = max(self.prompts // unit * unit, smallest)
        return below, max(below + unit, smallest)

    @property
    def steps(self) -> int:
        """Optimizer steps per batch of prompts."""
        return self.epochs * self.minibatches

    @property
    def micro_batches(self) -> int:
        """Micro-batches per batch of prompts and rank."""
        return self.steps * self.accumulate

    def rows(self) -> list[tuple[str, str]]:
        """Table of the plan, as rows of two columns."""
        per_step = self.prompts // self.minibatches
        return [
            ("prompts per batch", f"{self.prompts} over {self.ranks} rank(s)"),
            ("completions per prompt", str(self.group_size)),
            ("rows per batch", str(self.prompts * self.group_size)),
            ("optimizer steps per batch", f"{self.epochs} epoch(s) x {self.minibatches} minibatch(es) = {self.steps}"),
            ("rows per optimizer step", str(per_step * self.group_size)),
            (
                "micro-batches per step and rank",
                f"{self.accumulate}, about {per_step // self.ranks // self.accumulate} prompts each",
            ),
        ]

    @rank_zero_only
    def show(self) -> None:
        """Print the plan as a table."""
        table = Table("batch plan", "")
        for row in self.rows():
            table.add_row(*row)
        Console().print(table)


def planned_steps(trainer: pl.Trainer, plan: Callable[[int], BatchPlan]) -> int:
    """Optimizer steps of a run, by ``trainer.max_steps`` or else ``max_epochs``; -1 if nothing bounds them.

    Args:
        trainer: the Trainer.
        plan: prompts per batch -> plan.
    """
    data, epochs = trainer.datamodule, trainer.max_epochs  # type: ignore[attr-defined]
    if trainer.max_steps >= 0 or epochs is None or epochs < 0:
        return trainer.max_steps
    sizes, limit = plan(data.batch_size), trainer.limit_train_batches
    # Not `trainer.estimated_stepping_batches`, after which Lightning restores no position in the data.
    length = len(data.train_set) // data.batch_size * sizes.micro_batches
    # As Lightning reads it: a share of an epoch, or a number of its micro-batches.
    length = int(length * limit) if isinstance(limit, float) else min(length, limit)
    return length // sizes.accumulate * epochs


def balanced_parts(costs: list[int], parts: int) -> list[list[int]]:
    """Items dealt into parts of nearly equal cost, at least one item each: dearest item first, always to the cheapest part.

    Example: costs 5 4 3 3 in two parts: [0, 3] and [1, 2], costs 8 and 7.

    Args:
        costs: cost of each item, for example its tokens; at least ``parts`` items.
        parts: number of parts.

    Returns:
        Numbers of the items of each part, in ascending order.
    """
    loads = [0] * parts
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for item in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        # A part without items is the cheapest even if all items so far cost nothing.
        part = min(range(parts), key=lambda number: (bool(dealt[number]), loads[number], number))
        dealt[part].append(item)
        loads[part] += costs[item]
    return [sorted(items) for items in dealt]
