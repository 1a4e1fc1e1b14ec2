"""Checks before a model is built: options that do not go together, and Trainer, data and judge when a run is set up."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lit_rl.datamodules.base import PromptDataModule
from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.models.spec import LoRASpec
from lit_rl.objectives.objective import Objective
from lit_rl.sampling.sampler import Sampler
from lit_rl.training.checks import check_data, check_equal_work, check_precision, check_trainer
from lit_rl.training.dry_run import check_judge


def check_start(trainer: pl.Trainer, stage: str, evaluation: Evaluation, *, every_forward_together: bool) -> None:
    """Refuse what can be known to fail as soon as Trainer, data and module have met.

    Args:
        trainer: the Trainer.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
        evaluation: answers and judges held-out problems.
        every_forward_together: whether each forward pass is one of all ranks.
    """
    check_trainer(trainer)
    if stage == "fit":
        check_precision(trainer)
        check_data(trainer)
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        return
    # Data modules are set up before the module, so the sets exist.
    if isinstance(data, PromptDataModule) and stage in ("fit", "validate", "test") and evaluation.generates:
        check_judge(evaluation.correct, data.test_set if stage == "test" else data.val_set)
    if every_forward_together:
        problems = data.val_set if stage in ("fit", "validate") else data.test_set
        check_equal_work(len(problems), trainer.world_size)


def check_sampling(
    sampler: Sampler, group_size: int, epochs: int, minibatches: int, objective: Objective, lora: LoRASpec | None
) -> None:
    """Refuse options of an algorithm that samples, if they do not go together."""
    if sampler.temperature == 0:
        raise ValueError("model.sampler.temperature is 0: all completions of a group would be equal; write 1.0.")
    if isinstance(sampler.temperature, list) and len(sampler.temperature) > group_size:
        raise ValueError(
            f"model.sampler.temperature lists {len(sampler.temperature)} temperatures, but a group has "
            f"{group_size} completions; write at most {group_size}, or raise model.group_size."
        )
    if lora is not None and lora.dropout:
        raise ValueError(f"model.policy.lora.dropout is {lora.dropout}; sampler and learner must agree: write 0.")
    if (objective.ratio, objective.aggregation) == ("sequence", "token"):
        rank_zero_info(
            "objective.ratio sequence with aggregation token weighs a sequence by its length; "
            "GSPO (arXiv 2507.18071) has aggregation sequence."
        )
    if objective.surrogate == "reinforce" and epochs * minibatches > 1:
        raise ValueError(
            f"objective.surrogate reinforce goes with one epoch of one minibatch, not {epochs} x {minibatches}: "
            "it has no ratio for a policy that has moved. With more steps a rollout write clip, cispo or sapo."
        )
