"""Sample table: prompts, completions, reward parts and advantages, to read while the policy trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from lit_rl.algorithms import PolicyGradient
from lit_rl.rollouts import Rollouts
from lit_rl.training.metrics_log import keep_lines
from lit_rl.training.stream import MicroBatch


class SampleTable(Callback):
    """Appends completions of the current step to ``samples.jsonl``, and to W&B as a table if it is a logger.

    Groups without signal are missing if the loss leaves them out; equal completions stand once, with their ``multiplicity``.

    Args:
        every_n_steps: optimizer steps between two entries.
        rows: completions per entry: the first ones of the micro-batch, group by group.
    """

    def __init__(self, every_n_steps: int = 50, rows: int = 8) -> None:
        self.every_n_steps, self.rows = every_n_steps, rows
        self._lines = 0  # of the file that belong to this run
        self._begun = False

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: MicroBatch, batch_idx: int) -> None:
        # At the first batch: a dry run, which ends before, changes no file.
        if not self._begun and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # Entries of an earlier run, or those that a killed process wrote after its last checkpoint and that come again.
            keep_lines(_file(trainer), self._lines)
        self._begun = True
        # The step counts up after the last micro-batch: without `first` all of a step would write.
        due = batch.first and trainer.global_step % self.every_n_steps == 0
        if not (due and trainer.is_global_zero and isinstance(batch.rows, Rollouts)) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        names = module.sampler.arm_names if isinstance(module, PolicyGradient) else ()
        entries = sample_rows(batch.rows, trainer.global_step, names)[: self.rows]
        path = _file(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self._lines += len(entries)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and entries:
                columns = list(entries[0])
                logger.log_table("samples", columns=columns, data=[[entry[name] for name in columns] for entry in entries])

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self._lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lines = state["lines"]


def _file(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "samples.jsonl"


def sample_rows(rollouts: Rollouts, step: int, arm_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One flat entry per completion, in the order of the rollouts, with the name of its arm if there are arms."""
    columns = {
        "reward": rollouts.rewards,
        **{f"rewards/{name}": values for name, values in rollouts.parts.items()},
        "advantage": rollouts.advantages.sum(1) / rollouts.sampled.sum(1).clamp(min=1),  # mean over sampled tokens
        "truncated": rollouts.truncated,
        "length": rollouts.lengths,
        "multiplicity": rollouts.multiplicity,
    }
    values = {name: column.tolist() for name, column in columns.items()}
    entries = []
    for row, (text, sample) in enumerate(zip(rollouts.texts, rollouts.samples, strict=True)):
        entry = {"step": step, "prompt": sample.prompt, "completion": text, "reference": sample.reference}
        entries.append(entry | {name: column[row] for name, column in values.items()})
    if arm_names and rollouts.has("arm"):
        for entry, arm in zip(entries, rollouts.arm.tolist(), strict=True):
            entry["arm"] = arm_names[arm]
    return entries
