"""Supervised fine-tuning: raise the likelihood of true completions.

    loss = -1/M sum_t log p(y_t | x, y_<t)

over the M target tokens of the whole optimizer step, on all ranks: the same for every way to cut the batch.

Run: ``lit-rl fit --config sft_arithmetic``
"""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.evaluation import Evaluation
from lit_rl.loading import PolicySpec
from lit_rl.module import PolicyModule, default_optimizer
from lit_rl.plan import BatchPlan
from lit_rl.schedule import Schedule
from lit_rl.stream import MicroBatch
from lit_rl.supervised import SupervisedStream, supervised_rows
from lit_rl.types import PromptBatch, TokenBatch


class SFT(PolicyModule):
    """Supervised fine-tuning on prompts with true completions.

    Args:
        policy: the model that learns and its tokenizer.
        optimizer: any torch or bitsandbytes optimizer; default: AdamW at 2e-5.
        schedule: how its learning rate changes.
        evaluation: how held-out problems are answered and judged.
        completion_only: learn the completions; False learns the prompts' tokens too.
        seed: of the weights of a model from scratch and of every draw; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        policy: PolicySpec,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule | None = None,
        evaluation: Evaluation | None = None,
        completion_only: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, schedule, evaluation, seed)
        self.completion_only = completion_only

    def batch_plan(self, prompts: int) -> BatchPlan:
        return BatchPlan(prompts, self.trainer.world_size, 1, 1, 1, self.trainer.accumulate_grad_batches)

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> SupervisedStream:
        return SupervisedStream(self, loader, plan)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        assert isinstance(batch.rows, TokenBatch)
        scores = self.policy.score_batch(batch.rows)
        loss = -(scores.logprobs * batch.weights).sum()
        self.record(batch, {"loss": loss, "mean_token_accuracy": (scores.hits * batch.weights).sum()})
        return loss * batch.scale

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        rows = supervised_rows(self, batch, self.completion_only).to(self.device)
        scores = self.policy.score_batch(rows)
        count = rows.target.sum()
        self.log("val/loss", -scores.logprobs.sum() / count, batch_size=int(count), sync_dist=True)
        self.log("val/mean_token_accuracy", scores.hits.sum() / count, batch_size=int(count), sync_dist=True)
