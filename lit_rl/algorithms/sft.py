"""Supervised fine-tuning: raises the likelihood of true completions.

    loss = -1/M sum_t log p(y_t | x, y_<t)

over the M target tokens of the whole optimizer step, on all ranks. The loss does not depend on how the batch is cut.

Run: ``lit-rl fit --config sft_arithmetic``
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from lit_rl.algorithms.module import PolicyModule
from lit_rl.models.spec import PolicySpec
from lit_rl.training.batch_plan import BatchPlan
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch
from lit_rl.training.supervised import SupervisedStream, supervised_rows
from lit_rl.types import PromptBatch, TokenBatch


class SFT(PolicyModule):
    """Supervised fine-tuning on prompts with true completions.

    Args:
        policy: the model that learns and its tokenizer.
        completion_only: whether only completions are targets, and not the prompts' tokens too.
    """

    def __init__(self, policy: PolicySpec, *, completion_only: bool = True, **options: Any) -> None:
        super().__init__(policy, **options)
        self.completion_only = completion_only

    def batch_plan(self, prompts: int) -> BatchPlan:
        # Groups of one, one epoch, one minibatch: a batch of the loader is one optimizer step.
        return BatchPlan(prompts, self.trainer.world_size, 1, 1, 1, self.trainer.accumulate_grad_batches)

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> SupervisedStream:
        return SupervisedStream(loader, plan, self.runtime, self._rows)

    def _rows(self, prompts: PromptBatch) -> TokenBatch:
        return supervised_rows(prompts, self.renderer.pad_id, self.policy.context, self.completion_only)

    def batch_loss(self, batch: MicroBatch[TokenBatch]) -> BatchLoss:
        scores = self.policy.score_sequences(batch.rows)
        loss = -(scores.logprobs * batch.weights).sum()
        return BatchLoss(loss, {"mean_token_accuracy": (scores.hits * batch.weights).sum()}, {}, {})

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self._log_loss("val", batch)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().test_step(batch, batch_idx)
        self._log_loss("test", batch)

    def _log_loss(self, stage: str, batch: PromptBatch) -> None:
        rows = self._rows(batch).to(self.device)
        scores = self.policy.score_sequences(rows)
        count = rows.target.sum()
        # The count of tokens as ``batch_size`` makes Lightning's mean a mean over tokens, across batches and ranks.
        self.log(f"{stage}/loss", -scores.logprobs.sum() / count, batch_size=int(count), sync_dist=True)
        self.log(f"{stage}/mean_token_accuracy", scores.hits.sum() / count, batch_size=int(count), sync_dist=True)
