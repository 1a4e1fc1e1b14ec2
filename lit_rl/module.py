"""What every algorithm needs from Lightning, and no learning rule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.checks import check_equal_work, check_intervals, check_same_model, check_trainer
from lit_rl.compiling import compile_policy
from lit_rl.evaluation import Evaluation
from lit_rl.loading import PolicySpec, load_tokenizer
from lit_rl.plan import BatchPlan
from lit_rl.policy import Policy
from lit_rl.policy_check import check_policy
from lit_rl.randomness import generator_state, seeded, set_generator_state
from lit_rl.rollouts import Rollouts
from lit_rl.schedule import Schedule
from lit_rl.step_figures import StepFigures
from lit_rl.strategy import gathered_weights, shard
from lit_rl.stream import MicroBatch, TrainingStream
from lit_rl.types import PromptBatch

ON_PROGRESS_BAR = ("loss", "reward", "kl")


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW without weight decay at a rate of 2e-5, for fine-tuning a pretrained model."""
    return torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0)


class PolicyModule(pl.LightningModule):
    """A policy, its optimizer, its training stream, its evaluation and its checkpoints.

    Args:
        policy: the model that learns and its tokenizer.
        optimizer: any torch or bitsandbytes optimizer.
        schedule: how its learning rate changes.
        evaluation: how held-out problems are answered and judged.
        seed: of the weights of a model from scratch and of every draw; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        policy: PolicySpec,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule | None = None,
        evaluation: Evaluation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy_spec, self.seed = policy, seed
        self.tokenizer = load_tokenizer(policy)  # here: data modules read it before `configure_model`
        self.evaluation = evaluation or Evaluation()
        self._optimizer, self._schedule = optimizer, schedule or Schedule()
        self._stream: TrainingStream | None = None
        self._stream_state: dict[str, Any] | None = None
        self._figures = StepFigures({})
        self._step_start = 0.0

    # --- what an algorithm gives ---------------------------------------------------------------------------------

    def batch_plan(self, prompts: int) -> BatchPlan:
        """How a batch of ``prompts`` prompts (over all ranks) is worked through."""
        raise NotImplementedError

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> TrainingStream:
        """The stream of micro-batches that this algorithm trains on."""
        raise NotImplementedError

    def render(self, prompts: PromptBatch) -> PromptBatch:
        """What the policy is shown of the data's prompts."""
        return prompts

    def policies(self) -> list[Policy]:
        """Every policy that runs forwards: the one that learns, and a copy that does not."""
        return [self.policy]

    def exports(self) -> dict[str, Policy]:
        """What is exported, by what is put behind the folder's name."""
        return {"": self.policy}

    def parameters_to_learn(self) -> list[Any]:
        """What the optimizer gets: parameters, or groups of them."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    # --- building ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        with seeded(self.seed):
            self.policy = Policy(self.policy_spec, self.tokenizer)
        check_policy(self.policy)
        self.configure_policy()
        for policy in self.policies():
            if policy.spec.compile:
                compile_policy(policy, decoding=self.device_mesh is None)
        if self.device_mesh is not None:
            for policy in self.policies():
                shard(policy, self.device_mesh)

    def configure_policy(self) -> None:
        """Change the new policy before it is sharded."""

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters_to_learn())
        scheduler = self._schedule.build(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_data(self, loader: DataLoader) -> TrainingStream:
        """Turn a loader of prompts into this algorithm's training data; a data module's ``train_dataloader`` returns it."""
        self._stream = self.training_stream(loader, self.batch_plan((loader.batch_size or 1) * self.trainer.world_size))
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
            self._stream_state = None
        return self._stream

    @rank_zero_only
    def _print_plan(self, plan: BatchPlan) -> None:
        table = Table("batch plan", "")
        for row in plan.rows():
            table.add_row(*row)
        Console().print(table)

    def setup(self, stage: str) -> None:
        check_trainer(self.trainer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and stage == "fit":
            self._print_plan(self.batch_plan(data.batch_size))
        if data is not None and self.policy_spec.gather == "layer":
            problems = data.val_set if stage in ("fit", "validate") else data.test_set
            check_equal_work(len(problems), self.trainer.world_size)

    def on_train_start(self) -> None:
        assert self._stream is not None
        check_intervals(self.trainer, self._stream.plan.micro_batches)

    # --- steps ---------------------------------------------------------------------------------------------------

    def record(
        self,
        batch: MicroBatch,
        sums: dict[str, Tensor],
        ratios: dict[str, tuple[Tensor, Tensor]] | None = None,
        ranges: dict[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Add up this micro-batch's shares of the optimizer step's figures; log them with the last one.

        Args:
            batch: the micro-batch.
            sums: 0-D shares; over all micro-batches and ranks they add up to the figure.
            ratios: 0-D shares of a numerator and a denominator, whose sums are divided at the end.
            ranges: 1-D values, of which the smallest and the largest of the step are logged as ``<name>/min`` and ``/max``.

        Returns:
            What was logged, the same on all ranks; nothing before the last micro-batch of the step.
        """
        if batch.first:
            self._figures = StepFigures(batch.metrics)
        self._figures.add(sums, ratios or {}, ranges or {})
        if not batch.last:
            return {}
        reduce = self.trainer.strategy.reduce
        values = self._figures.over_ranks(self.sum_over_ranks, lambda ends: reduce(ends, reduce_op="max"))
        shown = {name: value for name, value in values.items() if name in ON_PROGRESS_BAR}
        self.log_dict(shown, prog_bar=True, on_step=True, on_epoch=False)
        rest = {name: value for name, value in values.items() if name not in shown}
        self.log_dict(rest, on_step=True, on_epoch=False)
        return values

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        if batch.first:
            self._step_start = time.perf_counter()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = gradient_clip_val or torch.inf
        by_norm = gradient_clip_algorithm != "value"  # Lightning passes an enum that equals its value
        norm = torch.nn.utils.clip_grad_norm_(params, limit if by_norm else torch.inf)
        if not by_norm:
            torch.nn.utils.clip_grad_value_(params, limit)
        self.log("grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.log("time/update", time.perf_counter() - self._step_start)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.evaluation.update(self, batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.evaluation.update(self, batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, str]]:
        return self.evaluation.answer(self, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        figures = {f"{stage}/{name}": value for name, value in self.evaluation.compute().items()}
        self.log_dict(figures, rank_zero_only=True)

    # Evaluation draws random numbers and gathers sharded weights; neither may show in training.

    def on_validation_start(self) -> None:
        self._isolated = self._isolation()
        self._isolated.__enter__()

    def on_validation_end(self) -> None:
        self._isolated.__exit__(None, None, None)

    on_test_start, on_test_end = on_validation_start, on_validation_end
    on_predict_start, on_predict_end = on_validation_start, on_validation_end

    @contextmanager
    def _isolation(self) -> Iterator[None]:
        before = generator_state()
        with self.gathered():
            yield
        set_generator_state(before)

    # --- helpers of collaborators --------------------------------------------------------------------------------

    def forward_context(self) -> AbstractContextManager[None]:
        """The run's precision, for forwards outside ``training_step``; nothing but forwards belongs inside."""
        return self.trainer.precision_plugin.forward_context()

    def gathered(self) -> AbstractContextManager[None]:
        """Whole weights on every rank, where they are sharded and `PolicySpec.gather` allows it."""
        return gathered_weights(self.policies() if self.policy_spec.gather == "rollout" else [])

    def decode(self, rollouts: Rollouts) -> list[str]:
        """The completions as text, special tokens written out, without the end token."""
        lengths = (rollouts.lengths - (~rollouts.truncated).long()).tolist()
        rows = rollouts.completion_ids.tolist()
        return self.tokenizer.batch_decode(
            [row[:length] for row, length in zip(rows, lengths, strict=True)], clean_up_tokenization_spaces=False
        )

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")

    def gather(self, values: Tensor) -> Tensor:
        """1-D values of each rank -> those of all ranks, one rank after another; their counts may differ."""
        if self.trainer.world_size == 1:
            return values
        counts = self.all_gather(torch.tensor(len(values), device=self.device))
        assert isinstance(counts, Tensor)
        padded = torch.cat([values, values.new_zeros(int(counts.max()) - len(values))])
        everyone = self.all_gather(padded)
        assert isinstance(everyone, Tensor)
        return torch.cat([row[:count] for row, count in zip(everyone, counts.tolist(), strict=True)])

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._stream is None:
            return
        states: list[Any] = [None] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(states, self._stream.state_dict())
        else:
            states = [self._stream.state_dict()]
        checkpoint["stream"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_model(self.state_dict(), checkpoint.get("state_dict") or {})
        states = checkpoint.get("stream")
        if states is None or not self.trainer.training:
            return
        if len(states) != self.trainer.world_size:
            raise ValueError(
                f"the checkpoint was written by {len(states)} process(es) and this run has {self.trainer.world_size}; "
                "resume with as many, or start a new run from the exported model."
            )
        self._stream_state = states[self.trainer.global_rank]
