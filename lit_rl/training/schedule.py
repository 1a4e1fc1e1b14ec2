"""Learning-rate schedules by the names of transformers, counted in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

NEEDS_METRIC = ("reduce_lr_on_plateau", "greedy")
WITHOUT_END = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Schedules that do not depend on the number of steps."""


@dataclass
class Schedule:
    """Schedule of the learning rate over ``trainer.max_steps``."""

    name: str = "constant_with_warmup"
    """Name in transformers' ``get_scheduler``: ``constant_with_warmup``, ``linear``, ``cosine``, ``cosine_with_min_lr``,
    ``warmup_stable_decay`` and others."""
    warmup_steps: int = 0
    """Optimizer steps in which the rate rises linearly from 0."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the schedule, for example {min_lr_rate: 0.1} for ``cosine_with_min_lr``."""

    def build(self, optimizer: Optimizer, max_steps: int) -> LRScheduler:
        """Scheduler of a run of ``max_steps`` optimizer steps (-1: unknown).

        Raises:
            ValueError: for an unknown name, wrong options, or a schedule that needs the run's length if it is unknown.
        """
        from transformers import get_scheduler  # imported here: takes seconds, and only training needs it

        if self.name in NEEDS_METRIC:
            raise ValueError(f"model.schedule {self.name!r} follows a metric, which a step has not; write another schedule.")
        # Constant schedules never read the number of steps; others would decay towards step -1.
        if max_steps < 0 and self.name not in WITHOUT_END:
            raise ValueError(f"model.schedule {self.name!r} needs the run's length; give trainer.max_steps or max_epochs.")
        try:
            return get_scheduler(
                self.name,
                optimizer,
                num_warmup_steps=self.warmup_steps,
                num_training_steps=max_steps,
                scheduler_specific_kwargs=self.options,
            )
        # transformers raises ValueError for a name and TypeError for an option that it does not know.
        except (ValueError, TypeError) as error:
            raise ValueError(f"model.schedule: {error}") from error
