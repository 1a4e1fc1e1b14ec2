"""Supervised training data: each batch of the loader is one optimizer step, cut into micro-batches of like cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from lit_rl.losses import token_weights
from lit_rl.plan import BatchPlan, balanced_parts
from lit_rl.stream import MicroBatch, TrainingStream
from lit_rl.types import TokenBatch

if TYPE_CHECKING:
    from lit_rl.algorithms.sft import SFT


class SupervisedStream(TrainingStream):
    """Prompts with their true completions as a stream of micro-batches.

    Args:
        module: says which tokens are targets.
        loader: one optimizer step's share of this rank a batch.
        plan: how it is cut; one epoch, one minibatch.
    """

    def __init__(self, module: SFT, loader: DataLoader, plan: BatchPlan) -> None:
        super().__init__(module, loader, plan)
        self.module: SFT = module
        self.rows: TokenBatch | None = None

    def begin(self) -> None:
        self.rows = self.module.token_batch(self.prompts.next())

    def micro_batches(self) -> Iterator[MicroBatch]:
        rows = self.rows
        assert rows is not None
        num_tokens = int(self.module.sum_over_ranks(rows.target.sum()[None]))
        parts = balanced_parts(rows.lengths.tolist(), self.plan.accumulate)
        for number, part in enumerate(parts):
            micro = rows.select(part)
            weights = token_weights(micro.target, "token", num_tokens, self.plan.prompts, 1)
            yield MicroBatch(micro, weights, num_tokens, self.scale, number == 0, number == len(parts) - 1)
