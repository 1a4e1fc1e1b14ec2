"""Base LightningModule: policy, optimizer, training stream, evaluation, checkpoints. Contains no learning rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.algorithms.start import check_start
from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.models.compiling import compile_policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.policy import Policy
from lit_rl.models.sharding import shard, unsharded_weights
from lit_rl.models.spec import PolicySpec
from lit_rl.options import check_least
from lit_rl.randomness import generator_state, seeded, set_generator_state
from lit_rl.runtime import Runtime
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.renderer import Renderer
from lit_rl.training.batch_plan import BatchPlan, planned_steps
from lit_rl.training.checks import check_intervals, check_one_loader
from lit_rl.training.optimizer import build_optimizer
from lit_rl.training.optimizer_step import OptimizerStep, with_router_loss
from lit_rl.training.resume import check_checkpoint, collect_states, describe_models, make_resumable, state_of_rank
from lit_rl.training.schedule import Schedule
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch, TrainingStream
from lit_rl.training.weights import MEASURED_STEP, check_learning, check_quantization, share_moved, some_weights
from lit_rl.types import PromptBatch

ON_PROGRESS_BAR = ("loss", "reward", "kl")


class PolicyModule(pl.LightningModule):
    """Policy, optimizer, training stream, evaluation and checkpoints of an algorithm.

    Args:
        policy: the model that learns and its tokenizer.
        optimizer: any torch or bitsandbytes optimizer; default: AdamW at 2e-5 without weight decay.
        schedule: schedule of the learning rate; default: constant.
        evaluation: answers held-out problems and judges the answers.
        max_skipped_steps: optimizer steps in a row with a loss or a gradient that is not finite, which change nothing, after
            which the run ends and leaves the batch of the last one.
        seed: seeds initial weights (models from scratch) and all sampling; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        # A lambda: jsonargparse reads class and rate from its source, so that configs and flags may change them.
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0),
        schedule: Schedule | None = None,
        evaluation: Evaluation | None = None,
        max_skipped_steps: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy_spec, self.seed = policy, seed
        self.tokenizer = load_tokenizer(policy)  # here: data modules read it before `configure_model`
        self.renderer = Renderer(self.tokenizer)
        self.evaluation = evaluation or Evaluation()
        self._optimizer, self._schedule = optimizer, schedule or Schedule()
        self._stream: TrainingStream[Any] | None = None
        self._stream_state: dict[str, Any] | None = None
        self._isolated = ExitStack()
        self.max_skipped_steps = max_skipped_steps
        check_least(self, "model", max_skipped_steps=1)
        self._step = OptimizerStep(max_skipped_steps)

    # --- defined by each algorithm -------------------------------------------------------------------------------

    def batch_plan(self, prompts: int) -> BatchPlan:
        """Plan of a batch of ``prompts`` prompts (over all ranks)."""
        raise NotImplementedError

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> TrainingStream[Any]:
        """Stream of micro-batches that this algorithm trains on."""
        raise NotImplementedError

    def batch_loss(self, batch: MicroBatch[Any]) -> BatchLoss:
        """Loss of a micro-batch, and its shares in the metrics of its optimizer step."""
        raise NotImplementedError

    def policies(self) -> list[Policy]:
        """Every policy that runs forwards: the learner first, then frozen copies and critics."""
        return [self.policy]

    def new_tokens(self, training: bool) -> int:
        """Most tokens that are sampled after a prompt, in training or in evaluation; 0 for none."""
        return 0 if training else self.evaluation.greedy.max_new_tokens * self.evaluation.generates

    def exports(self) -> dict[str, Policy]:
        """Policies to export, by the suffix of their folder's name."""
        return {"": self.policy}

    def parameters_to_learn(self) -> dict[str, dict[str, Any]]:
        """Groups of the optimizer, by the name of the part that learns."""
        return {"policy": {"params": [p for p in self.policy.parameters() if p.requires_grad]}}

    # --- building ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if hasattr(self, "policy"):  # Lightning calls this hook before every stage
            return
        # FSDP2 shards what each rank holds and broadcasts nothing: new weights must be the same on all ranks.
        with seeded(self.seed):
            self.policy = Policy(self.policy_spec, self.tokenizer)
        check_policy(self.policy)
        self.configure_policy()
        # After `configure_policy`, which may copy the policy; before sharding, whose hooks must stay outside of compiled code.
        for policy in self.policies():
            if policy.spec.compile:
                compile_policy(policy, decoding=self.device_mesh is None)
        if self.device_mesh is not None:
            for policy in self.policies():
                shard(policy, self.device_mesh)

    def configure_policy(self) -> None:
        """Change the new policy before it is compiled and sharded."""

    def configure_optimizers(self) -> Any:
        groups = self.parameters_to_learn()
        check_learning(groups)
        optimizer = build_optimizer(self._optimizer, list(groups.values()), self.trainer)
        self._step.parts = list(groups)
        # Counted in optimizer steps, so it moves by step below; Lightning's default is by epoch.
        scheduler = self._schedule.build(optimizer, planned_steps(self.trainer, self.batch_plan))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def stream(self) -> TrainingStream[Any] | None:
        """Training stream, once `training_data` has made it."""
        return self._stream

    def training_data(self, loader: DataLoader) -> TrainingStream[Any]:
        """Training stream of a loader of prompts; a data module's ``train_dataloader`` returns it."""
        if self._stream is not None:
            # `reload_dataloaders_every_n_epochs`: the data are new, the position in them stays.
            self._stream_state = self._stream.state_dict()
        # The loader's batches are of one rank.
        self._stream = self.training_stream(loader, self.batch_plan((loader.batch_size or 1) * self.trainer.world_size))
        if self._stream_state is not None:
            self._stream.load_state_dict(self._stream_state)
            self._stream_state = None
        self._stream.repeats = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._stream

    def setup(self, stage: str) -> None:
        check_start(self.trainer, stage, self.evaluation, every_forward_together=self.policy_spec.unshard == "layer")
        self._interruption = make_resumable(self.trainer)
        if stage == "fit":
            check_quantization(self.policy_spec)
            self._stream = None  # a run does not go on with the stream of an earlier one
            self.batch_plan(self.trainer.datamodule.batch_size).show()  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        if self._stream is None:
            raise ValueError("train_dataloader of the data module must return trainer.lightning_module.training_data(loader).")
        # Here, since Lightning counts batches and intervals only after it has the stream.
        check_intervals(self.trainer, self._stream.plan.micro_batches)

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch[Any], batch_idx: int) -> None:
        if batch.last:
            self._interruption.stop_if_asked(self.trainer)

    # --- collaborators -------------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """The Trainer, as collaborators see it."""
        return Runtime(self.trainer)

    @property
    def actor(self) -> Actor:
        """The policy, as rewards and evaluation see it."""
        return Actor(self.policy, self.renderer, self.seed, self.runtime)

    def unsharded(self) -> AbstractContextManager[None]:
        """Whole weights on every rank, if they are sharded and `PolicySpec.unshard` allows it."""
        return unsharded_weights(self.policies() if self.policy_spec.unshard == "rollout" else [])

    # --- steps ---------------------------------------------------------------------------------------------------

    def whole_loss(self, batch: MicroBatch[Any]) -> BatchLoss:
        """`batch_loss` with the auxiliary losses of routers."""
        return with_router_loss(self.batch_loss, batch, self.policies())

    def training_step(self, batch: MicroBatch[Any], batch_idx: int) -> Tensor:
        loss = self.whole_loss(batch)
        self.record(batch, loss)
        # Only the returned loss is scaled: logged shares must add up to the loss of the whole step.
        return loss.loss * batch.scale

    def record(self, batch: MicroBatch[Any], loss: BatchLoss) -> dict[str, float]:
        """Accumulate the metrics of an optimizer step; at its last micro-batch log and return them, the same on all ranks."""
        values = self._step.add(batch, loss, self.runtime)
        if batch.last and self._stream is not None:
            values |= self._stream.seen
        shown = {name: value for name, value in values.items() if name in ON_PROGRESS_BAR}
        self.log_dict(shown, prog_bar=True, on_step=True, on_epoch=False)
        rest = {name: value for name, value in values.items() if name not in shown}
        self.log_dict(rest, on_step=True, on_epoch=False)
        return values

    def on_train_batch_start(self, batch: MicroBatch[Any], batch_idx: int) -> None:
        if batch.first:
            self._step.start_clock()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        before = some_weights(optimizer) if self.trainer.global_step == MEASURED_STEP else []
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if before:
            moved = {"weights_moved": share_moved(before, self.runtime.sum)}
            for logger in self.loggers:  # not by `log`, which would write it at each later step too
                logger.log_metrics(moved, MEASURED_STEP)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.log_dict(self._step.clip(optimizer, gradient_clip_val, gradient_clip_algorithm, self.runtime))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.update(self.actor, batch)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.update(self.actor, batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, str]]:
        return self.evaluation.answer(self.actor, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        metrics = {f"{stage}/{name}": value for name, value in self.evaluation.compute().items()}
        self.log_dict(metrics, rank_zero_only=True)

    # Evaluation draws random numbers and unshards weights; neither may show in training. The context spans two hooks.

    def on_validation_start(self) -> None:
        check_one_loader(self.trainer)
        self._isolated.enter_context(self._isolation())

    def on_validation_end(self) -> None:
        self._isolated.close()  # also called for an evaluation that broke off

    on_test_start, on_test_end = on_validation_start, on_validation_end
    on_predict_start, on_predict_end = on_validation_start, on_validation_end

    @contextmanager
    def _isolation(self) -> Iterator[None]:
        before = generator_state()
        with self.unsharded():
            yield
        set_generator_state(before)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> NoReturn:
        """Refused: a checkpoint holds weights and the state of a run, but no options of a module."""
        raise ValueError(
            "a checkpoint holds no options: open the run's export with AutoModelForCausalLM.from_pretrained, or build the "
            "module and call trainer.validate(module, datamodule=data, ckpt_path=...)."
        )

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["models"] = describe_models(self.policies(), self.tokenizer)
        checkpoint["optimizer_step"] = self._step.state_dict()
        if self._stream is not None:
            # A collective: Lightning builds a checkpoint on every rank, and rank 0 writes it.
            checkpoint["stream"] = collect_states(self._stream.state_dict(), self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.state_dict(), describe_models(self.policies(), self.tokenizer)
        check_checkpoint(checkpoint, *own, resuming=self.trainer.training)
        if self.trainer.training and "optimizer_step" in checkpoint:
            self._step.load_state_dict(checkpoint["optimizer_step"])
        # Kept for `training_data`: the loader does not exist yet, and Lightning's counters are restored later.
        if self.trainer.training and "stream" in checkpoint:
            self._stream_state = state_of_rank(checkpoint["stream"], self.trainer.global_rank, self.trainer.world_size)
