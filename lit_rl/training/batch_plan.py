"""How many prompts, rows, steps and micro-batches a run works through: checked and shown before it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of one batch of prompts and what becomes of it; all but the per-rank figures are global.

    Args:
        prompts: prompts in a batch, over all ranks.
        ranks: processes that share them.
        group_size: G, completions per prompt; 1 for supervised training.
        epochs: passes over the batch.
        minibatches: optimizer steps per pass.
        accumulate: micro-batches per optimizer step (``trainer.accumulate_grad_batches``).

    Raises:
        ValueError: where the sizes do not divide, with the nearest ones that do.
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
        smallest = unit * self.accumulate
        below = max(self.prompts // unit * unit, smallest)
        return below, max(below + unit, smallest)

    @property
    def steps(self) -> int:
        """Optimizer steps per batch of prompts."""
        return self.epochs * self.minibatches

    @property
    def micro_batches(self) -> int:
        """Micro-batches per batch of prompts, on each rank."""
        return self.steps * self.accumulate

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns."""
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


def balanced_parts(costs: list[int], parts: int) -> list[list[int]]:
    """Deal items into parts of nearly equal cost, each at least one item: dearest first, always to the cheapest part.

    Example: costs 5 4 3 3 in two parts: [0, 3] and [1, 2], costs 8 and 7.

    Args:
        costs: what each item costs, for example its tokens; at least ``parts`` items.
        parts: how many parts.

    Returns:
        The items' numbers by part, in ascending order.
    """
    loads = [0] * parts
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for item in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        part = min(range(parts), key=lambda number: (bool(dealt[number]), loads[number], number))
        dealt[part].append(item)
        loads[part] += costs[item]
    return [sorted(items) for items in dealt]
