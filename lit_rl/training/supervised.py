"""Supervised training data: each batch of the loader is one optimizer step, cut into micro-batches of nearly equal cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader

from lit_rl.objectives.aggregation import token_weights
from lit_rl.runtime import Runtime
from lit_rl.training.batch_plan import BatchPlan, balanced_parts
from lit_rl.training.stream import MicroBatch, TrainingStream
from lit_rl.types import PromptBatch, TokenBatch


def supervised_rows(prompts: PromptBatch, pad_id: int, context: int | None, completion_only: bool = True) -> TokenBatch:
    """Rows of prompts and their true completions; only targets carry loss.

    Args:
        prompts: prompts with completions.
        pad_id: token id that fills rows up.
        context: positions of the model; None for no limit.
        completion_only: whether completions are the targets; False: all tokens but the first.

    Raises:
        ValueError: if a sample has no completion, or more tokens than the model has positions.
    """
    # An empty list stands for a source without solutions, never for a solution that ends at once.
    if not all(prompts.completions):
        empty = prompts.samples[prompts.completions.index([])].number
        raise ValueError(f"sample {empty} has no completion to learn; supervised loss needs data with solutions.")
    rows = TokenBatch.from_prompts(prompts, pad_id, completion_only)
    longest = int(rows.lengths.max())
    if context is not None and longest > context:
        number = prompts.samples[int(rows.lengths.argmax())].number
        raise ValueError(
            f"sample {number} has {longest} tokens with its completion, more than the model's {context} positions; "
            "shorten the data or choose a model with a longer context."
        )
    return rows


class SupervisedStream(TrainingStream[TokenBatch]):
    """Stream of micro-batches of prompts with their true completions.

    Args:
        loader: batches of this rank's prompts, one optimizer step each.
        plan: sizes of a batch; one epoch, one minibatch.
        runtime: position in the epoch, sums over ranks.
        rows: prompts -> rows with targets.
    """

    def __init__(
        self, loader: DataLoader, plan: BatchPlan, runtime: Runtime, rows: Callable[[PromptBatch], TokenBatch]
    ) -> None:
        super().__init__(loader, plan, runtime)
        self._make_rows = rows
        self._rows: TokenBatch

    def begin(self) -> None:
        # Rows need no place in checkpoints: a batch is one step, and checkpoints are written between steps.
        self._rows = self._make_rows(self.prompts.next())

    def size(self) -> tuple[int, int]:
        return len(self._rows), int(self._rows.lengths.sum())

    def micro_batches(self) -> Iterator[MicroBatch[TokenBatch]]:
        rows = self._rows
        # Over all ranks, whose rows differ in length: a mean per rank would weigh their tokens unequally.
        num_tokens = int(self.runtime.sum(rows.target.sum()[None]))
        parts = balanced_parts(rows.lengths.tolist(), self.plan.accumulate)
        for number, part in enumerate(parts):
            micro = rows.select(part)
            # ``token`` reads neither of the last two numbers.
            weights = token_weights(micro.target, "token", num_tokens, self.plan.prompts, 1)
            yield MicroBatch(micro, weights, num_tokens, self.scale, number == 0, number == len(parts) - 1)
