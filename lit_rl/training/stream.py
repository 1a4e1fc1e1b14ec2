"""Training streams: the training data of a module as micro-batches, at a position that survives a restart.

`training_step` stays ordinary: it gets a `MicroBatch` and returns a loss. A stream has a length, so that Lightning neither
fetches ahead nor drops an open accumulation window, and its iterator does nothing before the first ``next``, since Lightning
calls ``iter`` once more than it needs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.randomness import generator_state, set_generator_state
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.training.batch_plan import BatchPlan
from lit_rl.types import PromptBatch, TokenBatch

Rows = TypeVar("Rows", Rollouts, TokenBatch)


class MicroBatch(Generic[Rows]):
    """Batch of one ``training_step``.

    Args:
        rows: rows to score.
        weights: (N, T) share of each token in the optimizer step's loss (`lit_rl.objectives.aggregation.token_weights`).
        num_tokens: tokens that count in the whole optimizer step, on all ranks.
        scale: factor on the loss that undoes Lightning's division by micro-batches and the mean over ranks.
        first: whether it opens the optimizer step.
        last: whether it closes the optimizer step.
        on_policy: whether no step was taken since its rows were sampled.
        metrics: metrics of the rollout to log with this step.
        num_targets: tokens of true completions in the whole optimizer step, on all ranks.
    """

    def __init__(
        self,
        rows: Rows,
        weights: Tensor,
        num_tokens: int,
        scale: float,
        first: bool,
        last: bool,
        on_policy: bool = False,
        metrics: dict[str, float] | None = None,
        num_targets: int = 0,
    ) -> None:
        self.rows, self.weights, self.num_tokens, self.scale = rows, weights, num_tokens, scale
        self.first, self.last, self.on_policy = first, last, on_policy
        self.metrics, self.num_targets = metrics or {}, num_targets

    def to(self, device: torch.device | str) -> MicroBatch[Rows]:
        moved = copy.copy(self)
        moved.rows, moved.weights = self.rows.to(device), self.weights.to(device)
        return moved


class PromptStream:
    """Batches of a loader, epoch after epoch, from a known position on.

    Args:
        loader: its sampler must have ``set_position(epoch, batch)``, see `lit_rl.datamodules.base.EpochSampler`.
    """

    def __init__(self, loader: DataLoader) -> None:
        if not hasattr(loader.sampler, "set_position"):
            raise ValueError(
                f"the training loader's sampler is a {type(loader.sampler).__name__}, which cannot resume; "
                "build the loader with lit_rl.datamodules.base.PromptDataModule."
            )
        self.loader = loader
        self.epoch = self.batch = 0
        self._iterator: Iterator[PromptBatch] | None = None

    def next(self) -> PromptBatch:
        """The next batch; after the loader's last one a new epoch begins."""
        while True:
            if self._iterator is None:
                self.loader.sampler.set_position(self.epoch, self.batch)  # type: ignore[attr-defined]
                self._iterator = iter(self.loader)
            batch = next(self._iterator, None)
            if batch is not None:
                self.batch += 1
                return batch
            self.restart()
            self.epoch, self.batch = self.epoch + 1, 0

    def restart(self) -> None:
        """Build the loader's iterator anew at the same position, since the data may have changed."""
        self._iterator = None


class TrainingStream(ABC, Generic[Rows]):
    """One Lightning epoch of micro-batches; each batch of the loader becomes ``plan.micro_batches`` of them.

    Args:
        loader: batches of this rank's prompts.
        plan: how they are cut.
        runtime: position in the epoch, sums over ranks.
    """

    def __init__(self, loader: DataLoader, plan: BatchPlan, runtime: Runtime) -> None:
        self.plan, self.runtime = plan, runtime
        self.prompts = PromptStream(loader)
        if len(loader) == 0:
            raise ValueError(f"the training data hold fewer samples than one batch of {plan.prompts}; lower data.batch_size.")
        self._length = len(loader) * plan.micro_batches
        self._rng: dict[str, Tensor] | None = None
        self._begun = (0, 0)  # position of the loader after the last batch whose `begin` is finished
        self._done = 0  # micro-batches of that batch that were handed out

    @abstractmethod
    def begin(self) -> None:
        """Take the next batch of prompts and do all that comes before the first step on it."""

    @abstractmethod
    def micro_batches(self) -> Iterator[MicroBatch[Rows]]:
        """Micro-batches of the current batch, in order; the same at every call."""

    def __len__(self) -> int:
        return self._length

    @property
    def unfinished(self) -> bool:
        """Whether the current batch has micro-batches left."""
        return 0 < self._done < self.plan.micro_batches

    def __iter__(self) -> Iterator[MicroBatch[Rows]]:
        position = self.runtime.position
        self.prompts.restart()
        if self._rng is not None:
            # Only now: Lightning draws random numbers between loading a checkpoint and the first step.
            set_generator_state(self._rng)
            self._rng = None
        while position < len(self):
            if not self.unfinished:
                self.begin()
                self._begun, self._done = (self.prompts.epoch, self.prompts.batch), 0
            for batch in islice(self.micro_batches(), self._done, len(self) - position + self._done):
                position += 1
                self._done += 1
                yield batch

    @property
    def scale(self) -> float:
        """Factor on every loss: Lightning divides by micro-batches, and gradients are averaged over ranks."""
        return float(self.plan.accumulate * self.plan.ranks)

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State of this rank: position of the loader, micro-batches done of its last batch, and torch's generators."""
        epoch, batch = self._begun
        return {"epoch": epoch, "batch": batch, "done": self._done, "rng": generator_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.runtime.position % self.plan.accumulate:
            raise ValueError(
                "the checkpoint was written inside an accumulation window, whose half-summed gradient is lost; "
                "resume from one written at an optimizer step (ModelCheckpoint with every_n_train_steps)."
            )
        self.prompts.epoch, self.prompts.batch = self._begun = (state["epoch"], state["batch"])
        self._done, self._rng = state["done"], state["rng"]
