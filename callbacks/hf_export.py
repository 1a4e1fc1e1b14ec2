"""Export of the policy as a Hugging Face folder with every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import PolicyModule
from lit_rl.models.export import export_policy, whole_weights


class HFExport(Callback):
    """Exports model and tokenizer with each checkpoint, and at the end of the run.

    ``AutoModelForCausalLM.from_pretrained`` and the next run's ``model.policy.pretrained`` open the folder. It holds the
    weights of the latest export, and is replaced only by a finished one.

    Args:
        folder: target folder, below the run's folder (``trainer.default_root_dir``) unless it is an absolute path.
    """

    def __init__(self, folder: str = "export") -> None:
        self.folder = folder
        self._exported = -1  # the step of the last export

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._export(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._export(trainer, module)

    def _export(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, PolicyModule):
            raise ValueError(f"HFExport needs a module of lit_rl, not {type(module).__name__}.")
        if self._exported == trainer.global_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # On every rank, so that all of them skip the next export or all gather.
        self._exported = trainer.global_step
        for name, policy in module.exports().items():
            weights = whole_weights(policy)  # on every rank: sharded weights are gathered
            if trainer.is_global_zero:
                export_policy(policy, module.tokenizer, self._path(trainer, name), weights)
        trainer.strategy.barrier()

    def _path(self, trainer: pl.Trainer, name: str) -> Path:
        folder = Path(trainer.default_root_dir) / self.folder
        return folder.with_name(folder.name + name)
