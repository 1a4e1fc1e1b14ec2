"""Training stream: training data of a module as micro-batches, at a position that checkpoints keep.

`training_step` gets a `MicroBatch` and returns a loss. A stream has a length, so that Lightning neither fetches ahead nor
drops an open accumulation window. Its iterator does nothing before the first ``next``, since Lightning calls ``iter`` once
more than it needs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

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
        weights: (N, T) share of each token in the loss of the optimizer step (`lit_rl.objectives.aggregation.token_weights`).
        num_tokens: tokens in the loss of the whole optimizer step, on all ranks.
        scale: factor on the loss that undoes Lightning's division by micro-batches and the mean over ranks.
        first: whether the micro-batch opens the optimizer step.
        last: whether the micro-batch closes the optimizer step.
        on_policy: whether no optimizer step was taken since the rows were sampled.
        metrics: metrics of the rollout to log with the optimizer step.
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
        self.rows: Rows = rows
        self.weights, self.num_tokens, self.scale = weights, num_tokens, scale
        self.first, self.last, self.on_policy = first, last, on_policy
        self.metrics, self.num_targets = metrics or {}, num_targets

    def to(self, device: torch.device | str) -> MicroBatch[Rows]:
        moved = copy.copy(self)
        moved.rows, moved.weights = self.rows.to(device), self.weights.to(device)
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Tensors, strings, numbers, lists and dicts only, so that ``torch.load(weights_only=True)`` opens it."""
        supervised = isinstance(self.rows, TokenBatch)
        return vars(self) | {"rows": self.rows.state_dict(), "supervised": supervised}

    @staticmethod
    def from_state(state: dict[str, Any]) -> MicroBatch[Any]:
        """A micro-batch from a `state_dict`."""
        fields = dict(state)
        kind = TokenBatch if fields.pop("supervised") else Rollouts
        return MicroBatch(**fields | {"rows": kind.from_state(fields["rows"])})


@runtime_checkable
class PositionedSampler(Protocol):
    """Sampler of a loader that can resume, such as `lit_rl.datamodules.base.EpochSampler`."""

    def set_position(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at this batch of this epoch."""


class PromptStream:
    """Batches of a loader, epoch after epoch, from a known position on.

    Args:
        loader: batches of prompts.

    Raises:
        ValueError: if the loader's sampler is not a `PositionedSampler`.
    """

    def __init__(self, loader: DataLoader) -> None:
        if not isinstance(loader.sampler, PositionedSampler):
            raise ValueError(
                f"the training loader's sampler is a {type(loader.sampler).__name__}, which cannot resume; "
                "build the loader with lit_rl.datamodules.base.PromptDataModule."
            )
        self.loader, self._sampler = loader, loader.sampler
        self.epoch = self.batch = 0  # batches handed out, not batches that workers prepared ahead
        self._iterator: Iterator[PromptBatch] | None = None

    def next(self) -> PromptBatch:
        """Next batch; a new epoch begins after the loader's last batch."""
        while True:
            if self._iterator is None:
                self._sampler.set_position(self.epoch, self.batch)
                self._iterator = iter(self.loader)
            batch = next(self._iterator, None)
            if batch is not None:
                self.batch += 1
                return batch
            self.restart()
            self.epoch, self.batch = self.epoch + 1, 0

    def restart(self) -> None:
        """Make a new iterator of the loader at the same position, since the data may have changed."""
        self._iterator = None


class TrainingStream(ABC, Generic[Rows]):
    """One Lightning epoch of micro-batches: ``plan.micro_batches`` of each batch of the loader.

    Args:
        loader: batches of this rank's prompts.
        plan: sizes of a batch.
        runtime: position in the epoch, sums over ranks.

    Raises:
        ValueError: if the loader has no batch.
    """

    def __init__(self, loader: DataLoader, plan: BatchPlan, runtime: Runtime) -> None:
        self.plan, self.runtime = plan, runtime
        self.prompts = PromptStream(loader)
        if len(loader) == 0:
            raise ValueError(f"the training data hold fewer samples than one batch of {plan.prompts}; lower data.batch_size.")
        # Fixed, though early stops and refills draw more prompts: Lightning plans validation and accumulation by it.
        self._length = len(loader) * plan.micro_batches
        self._rng: dict[str, Tensor] | None = None  # to continue with at the next `next`
        self._rng_before: dict[str, Tensor] | None = None  # of a rollout that is being made, or broke off
        self.in_rollout = False  # whether nothing is lost if the process breaks off
        # Position in the prompts as of the last finished `begin`: a run that dies in `begin` takes the same batch again.
        self._begun = (0, 0)
        self._done = 0  # micro-batches of the current batch that were yielded
        self.repeats = False
        """Whether each epoch begins with the first batch of the first epoch (``trainer.overfit_batches``)."""
        self.seen: dict[str, float] = {"samples_seen": 0, "tokens_seen": 0}
        """Samples and tokens of all batches so far, over all ranks; a batch counts once, however many passes are made."""

    @abstractmethod
    def begin(self) -> None:
        """Make the next batch of prompts the current batch, and do all that comes before its first optimizer step."""

    @abstractmethod
    def micro_batches(self) -> Iterator[MicroBatch[Rows]]:
        """Micro-batches of the current batch, in order; equal at every call, since a resumed run skips those done."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Samples of the current batch on this rank, and its tokens: those of a prompt once, and of each completion."""

    def __len__(self) -> int:
        return self._length

    @property
    def unfinished(self) -> bool:
        """Whether the current batch has micro-batches left."""
        return 0 < self._done < self.plan.micro_batches

    def __iter__(self) -> Iterator[MicroBatch[Rows]]:
        # The body runs at the first `next`: Lightning may call `iter` before it sets its counter for the epoch.
        position = self.runtime.position
        self.prompts.restart()
        if self.repeats and position == 0:
            self.prompts.epoch = self.prompts.batch = 0
        if self._rng is not None:
            # Not in `load_state_dict`: Lightning draws random numbers between loading a checkpoint and the first step.
            set_generator_state(self._rng)
            self._rng = None
        while position < len(self):
            if not self.unfinished:
                self.begin()
                self._begun, self._done = (self.prompts.epoch, self.prompts.batch), 0
                self._add_to_seen()
            # An epoch may end inside a batch, which the next epoch goes on with.
            stop = self._done + len(self) - position
            # Micro-batches that were done before a checkpoint are made again and skipped.
            for batch in islice(self.micro_batches(), self._done, stop):
                # Counted before `yield`: a checkpoint is written while the generator waits there, after the optimizer step.
                position += 1
                self._done += 1
                yield batch

    def _add_to_seen(self) -> None:
        counts = self.runtime.sum(torch.tensor(self.size())).tolist()
        self.seen = {name: before + count for (name, before), count in zip(self.seen.items(), counts, strict=True)}

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A part of `begin` that changes nothing of the state: a run that breaks off in it makes the batch again."""
        self._rng_before = generator_state()
        self.in_rollout = True
        try:
            yield
        finally:
            self.in_rollout = False
        self._rng_before = None

    @property
    def scale(self) -> float:
        """Factor on each loss, since Lightning divides it by micro-batches and averages gradients over ranks."""
        return float(self.plan.accumulate * self.plan.ranks)

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State of this rank: position in the prompts, micro-batches done of the current batch, and torch's generators."""
        epoch, batch = self._begun
        return {"epoch": epoch, "batch": batch, "done": self._done, "rng": self._rng_before or generator_state(), **self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.runtime.position % self.plan.accumulate:
            raise ValueError(
                "the checkpoint was written inside an accumulation window, whose half-summed gradient is lost; "
                "resume from one written at an optimizer step (ModelCheckpoint with every_n_train_steps)."
            )
        self.prompts.epoch, self.prompts.batch = self._begun = (state["epoch"], state["batch"])
        self._done, self._rng = state["done"], state["rng"]
        self.seen = {name: state[name] for name in self.seen}
