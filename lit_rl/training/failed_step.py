"""Failed step: the micro-batches of an optimizer step whose loss or gradient is not finite, on disk and computed again."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lit_rl.files import new_file
from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.training.resume import collect_states
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch
from lit_rl.types import TokenBatch


class FailedStep(NamedTuple):
    """An optimizer step that failed."""

    step: int
    """Optimizer steps before it."""
    batches: list[list[MicroBatch[Any]]]
    """Its micro-batches, by rank."""


def save_failed_step(batches: Sequence[MicroBatch[Any]], runtime: Runtime) -> Path:
    """Write the micro-batches of all ranks to ``failed_step-<step>.pt`` in the run's folder; every rank must call.

    The file holds tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` opens it.
    """
    own = {"batches": [batch.to("cpu").state_dict() for batch in batches]}
    # A collective, although rank 0 alone writes: the gradient came from the batches of all ranks.
    ranks = [state["batches"] for state in collect_states(own, runtime.ranks)]
    path = runtime.folder / f"failed_step-{runtime.step + 1}.pt"
    if runtime.rank == 0:
        with new_file(path) as new:
            torch.save({"failed_step": runtime.step, "ranks": ranks}, new)
    return path


def load_failed_step(path: Path) -> FailedStep:
    """A step that `save_failed_step` wrote.

    Raises:
        ValueError: if the file is another one.
    """
    try:
        content = torch.load(path, weights_only=True)
        return FailedStep(content["failed_step"], [[MicroBatch.from_state(each) for each in own] for own in content["ranks"]])
    # torch's own errors about a file that it cannot read are of many kinds.
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a failed step (failed_step-<step>.pt of a run's folder).") from error


class Learner(Protocol):
    """Part of a module that computes losses."""

    def whole_loss(self, batch: MicroBatch[Any]) -> BatchLoss:
        """Share of a micro-batch in the loss of its step."""

    @property
    def policy(self) -> Policy:
        """The policy."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights that learn."""


def replay(step: FailedStep, module: Learner, device: torch.device) -> list[str]:
    """Compute the loss and the gradient of a step again; returns lines to read.

    Args:
        step: the step.
        module: the module that learns.
        device: the module's device.
    """
    total, lines = 0.0, []
    for rank, batches in enumerate(step.batches):
        for number, batch in enumerate(batches):
            batch = batch.to(device)
            loss = module.whole_loss(batch).loss
            loss.backward()  # gradients of all ranks add up in one process
            total += float(loss.detach())
            policy, rows = module.policy, batch.rows
            with torch.no_grad():
                scores = policy.score_sequences(rows) if isinstance(rows, TokenBatch) else policy.score(rows, details=False)
            lines += [f"rank {rank}, micro-batch {number}, {line}" for line in not_finite(rows, scores.logprobs.float())]
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    return [f"step {step.step + 1}: loss {total:.6g}, gradient norm {norm:.6g}", *lines]


def not_finite(rows: Rollouts | TokenBatch, logprobs: Tensor) -> list[str]:
    """Lines about tokens with a value that is not finite.

    Args:
        rows: the rows.
        logprobs: (N, T) of the learner.
    """
    if isinstance(rows, TokenBatch):
        mask, ids, values = rows.target, rows.ids, {"log-probability": logprobs}
    else:
        mask, ids = rows.sampled, rows.completion_ids
        values = {"log-probability": logprobs, "the sampler's log-probability": rows.logprobs}
        values |= {"ratio": (logprobs - rows.logprobs).exp(), "advantage": rows.advantages.expand_as(logprobs)}
        for name in ("ref_logprobs", "old_logprobs", "values", "returns"):
            values |= {name: getattr(rows, name)} if rows.has(name) else {}
    return [
        f"row {row}, token {token} (id {int(ids[row, token])}): {name} {float(value[row, token])}"
        for name, value in values.items()
        for row, token in (mask & ~value.isfinite()).nonzero().tolist()
    ]
