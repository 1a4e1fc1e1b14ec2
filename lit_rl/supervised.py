"""Supervised training data: each batch of the loader is one optimizer step, cut into micro-batches of like cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from lit_rl.aggregation import token_weights
from lit_rl.plan import BatchPlan, balanced_parts
from lit_rl.stream import MicroBatch, TrainingStream
from lit_rl.types import PromptBatch, TokenBatch

if TYPE_CHECKING:
    from lit_rl.algorithms.sft import SFT
    from lit_rl.module import PolicyModule


def supervised_rows(module: PolicyModule, prompts: PromptBatch, completion_only: bool = True) -> TokenBatch:
    """Prompts with their true completions as rows; only targets carry loss.

    Raises:
        ValueError: where a sample has no completion, or is longer than the model's context.
    """
    if not all(prompts.completions):
        empty = prompts.samples[prompts.completions.index([])].number
        raise ValueError(f"sample {empty} has no completion to learn; supervised loss needs data with solutions.")
    rows = TokenBatch.from_prompts(prompts, int(module.tokenizer.pad_token_id), completion_only)
    longest, context = int(rows.lengths.max()), module.policy.context
    if context is not None and longest > context:
        number = prompts.samples[int(rows.lengths.argmax())].number
        raise ValueError(
            f"sample {number} has {longest} tokens with its completion, more than the model's {context} positions; "
            "shorten the data or choose a model with a longer context."
        )
    return rows


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
        self.rows = supervised_rows(self.module, self.prompts.next(), self.module.completion_only)

    def micro_batches(self) -> Iterator[MicroBatch]:
        rows = self.rows
        assert rows is not None
        num_tokens = int(self.module.sum_over_ranks(rows.target.sum()[None]))
        parts = balanced_parts(rows.lengths.tolist(), self.plan.accumulate)
        for number, part in enumerate(parts):
            micro = rows.select(part)
            weights = token_weights(micro.target, "token", num_tokens, self.plan.prompts, 1)
            yield MicroBatch(micro, weights, num_tokens, self.scale, number == 0, number == len(parts) - 1)
