"""Checks of a run when it is set up: Trainer, data and judge, before a model is built."""

from __future__ import annotations

import lightning.pytorch as pl

from lit_rl.datamodules.base import PromptDataModule
from lit_rl.evaluation.accuracy import Evaluation
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
