"""Optimizer step: its metrics, its clipped gradient, and what happens if its loss or gradient is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_rl.models.policy import Policy
from lit_rl.runtime import Runtime
from lit_rl.training.failed_step import save_failed_step
from lit_rl.training.step_metrics import BatchLoss, StepMetrics
from lit_rl.training.stream import MicroBatch


class OptimizerStep:
    """The optimizer step under way, from its first micro-batch to its clipped gradient.

    A step whose loss or gradient is not finite on any rank fails on all: its gradient is dropped, so that weights and the
    optimizer's state stay as they are. The step counts, in the log and for schedules, so that a run keeps its length.

    Args:
        max_skipped: failed steps in a row that end the run.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.skipped = self.skipped_in_row = 0
        self.parts = ["policy"]
        """Names of the optimizer's groups."""
        self._metrics = StepMetrics({})
        self._batches: list[MicroBatch[Any]] = []
        self._loss = 0.0
        self._start = 0.0

    def start_clock(self) -> None:
        """Begin to measure the time of the step."""
        self._start = time.perf_counter()

    def add(self, batch: MicroBatch[Any], loss: BatchLoss, runtime: Runtime) -> dict[str, float]:
        """Metrics of the step, the same on all ranks, after its last micro-batch; nothing before."""
        if batch.first:
            self._metrics, self._batches = StepMetrics(batch.metrics), []
        self._batches.append(batch)
        self._metrics.add({"loss": loss.loss} | loss.sums, loss.ratios, loss.ranges)
        # Lightning keeps the last values that are logged in an accumulation window, so earlier micro-batches log none.
        if not batch.last:
            return {}
        values = self._metrics.over_ranks(runtime.sum, runtime.max)
        self._loss = values["loss"]
        return values

    def clip(
        self, optimizer: torch.optim.Optimizer, limit: float | None, algorithm: str | None, runtime: Runtime
    ) -> dict[str, float]:
        """Clip the gradient, or drop it if the step failed; returns metrics.

        Args:
            optimizer: the optimizer.
            limit: largest norm, or with ``value`` largest absolute value; None or 0 clips nothing.
            algorithm: ``norm``, ``value``, or None for ``norm``.
            runtime: the Trainer.

        Raises:
            ValueError: if `max_skipped` steps in a row have failed.
        """
        norm = _clip(optimizer, limit or math.inf, algorithm)
        # Both are of all ranks, so that all ranks decide alike.
        if math.isfinite(norm) and math.isfinite(self._loss):
            self.skipped_in_row = 0
        else:
            # None and not 0: gradients of zero would still decay weights and move them by momentum.
            optimizer.zero_grad(set_to_none=True)
            self._fail(norm, runtime)
        # The policy's rate has the name that dashboards know.
        names = ["lr", *(f"lr/{part}" for part in self.parts[1:])]
        rates = {name: float(group["lr"]) for name, group in zip(names, optimizer.param_groups, strict=True)}
        seconds = time.perf_counter() - self._start
        return {"grad_norm": norm, "skipped_steps": float(self.skipped), "time/update": seconds} | rates

    def _fail(self, norm: float, runtime: Runtime) -> None:
        self.skipped += 1
        # A scale of losses that was too large is no fault: it is lowered, and the next step is tried.
        if math.isfinite(self._loss) and runtime.lowers_loss_scale():
            return
        self.skipped_in_row += 1
        rank_zero_info(f"Step {runtime.step + 1} has loss {self._loss:.4g} and gradient norm {norm:.4g}: it changes nothing.")
        if self.skipped_in_row >= self.max_skipped:
            path = save_failed_step(self._batches, runtime)
            raise ValueError(
                f"{self.skipped_in_row} optimizer step(s) in a row had a loss or a gradient that is not finite "
                f"(model.max_skipped_steps); weights, checkpoints and export are as before them, and lit-rl replay {path} "
                "with the run's --config and --ckpt_path shows where the last one fails. Try a lower learning rate."
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.skipped_in_row = state["skipped"], state["skipped_in_row"]


def with_router_loss(
    batch_loss: Callable[[MicroBatch[Any]], BatchLoss], batch: MicroBatch[Any], policies: Sequence[Policy]
) -> BatchLoss:
    """A micro-batch's loss with the auxiliary losses of the routers that its forward passes go through.

    The auxiliary loss of an optimizer step is the mean over its micro-batches and ranks. It is not linear in tokens, so it
    depends a little on how the batch is cut.

    Args:
        batch_loss: micro-batch -> loss without them.
        batch: the micro-batch.
        policies: models that may run.
    """
    for policy in policies:
        policy.router.clear()  # of passes that no loss came of, such as those of a check
    loss = batch_loss(batch)
    for policy in policies:
        if (balance := policy.router.take()) is not None:
            share = policy.router.coef * balance / batch.scale
            sums = loss.sums | {"aux_loss": loss.sums.get("aux_loss", 0.0) + share}
            loss = loss._replace(loss=loss.loss + share, sums=sums)
    return loss


def _clip(optimizer: torch.optim.Optimizer, limit: float, algorithm: str | None) -> float:
    """Norm of the gradient of all ranks before it was clipped."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    by_norm = algorithm != "value"  # Lightning passes an enum that equals its value
    # An infinite limit clips nothing: the norm is measured in every run.
    norm: Tensor = torch.nn.utils.clip_grad_norm_(params, limit if by_norm else math.inf)
    if not by_norm:
        torch.nn.utils.clip_grad_value_(params, limit)
    # Under FSDP2 a norm is a DTensor, which is not summed over ranks yet; `full_tensor` is a collective.
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
