"""Export of the policy as a Hugging Face folder with every checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from safetensors import SafetensorError

from lit_rl.algorithms import PolicyModule
from lit_rl.files import check_replaceable, clear_leftovers
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.reopened import probe_policy
from lit_rl.models.sources import source_folders
from lit_rl.options import first_line
from lit_rl.ranks import on_rank_zero

from .entropy_filter import EntropyFilter


class HFExport(Callback):
    """Exports model and tokenizer with each checkpoint, and at the end of the run.

    ``AutoModelForCausalLM.from_pretrained`` and the next run's ``model.policy.pretrained`` open the folder. It holds the
    weights of the latest export, and is replaced only by a finished one, which was opened again and compared with the policy.
    With Lightning's ``WeightAveraging`` the average is exported, as it is validated. Before the first step an export is tried.

    Args:
        folder: target folder, below the run's folder (``trainer.default_root_dir``) unless it is an absolute path; it must be
            new, or an earlier export.
    """

    def __init__(self, folder: str = "export") -> None:
        self.folder = folder
        self._exported = -1  # the step of the last export

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, PolicyModule):
            raise ValueError(f"HFExport needs a module of lit_rl, not {type(module).__name__}.")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        kept = _folders_of_run(trainer)  # on every rank: Lightning agrees on the log's folder
        for name in module.exports():
            on_rank_zero(trainer, partial(self._check_target, trainer, module, name, kept))
        # Whatever cannot be saved, opened again, or written to this disk is found now instead of at the first checkpoint.
        try:
            self._export(trainer, module, trial=True)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"HFExport cannot write to {self._path(trainer, '')}: {first_line(error)}") from error

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._export_once(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._export_once(trainer, module)

    def _export_once(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, PolicyModule):
            raise ValueError(f"HFExport needs a module of lit_rl, not {type(module).__name__}.")
        if self._exported == trainer.global_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # On every rank, so that all of them skip the next export or all gather.
        self._exported = trainer.global_step
        with _averaged(trainer, module):
            self._export(trainer, module)

    def _export(self, trainer: pl.Trainer, module: PolicyModule, trial: bool = False) -> None:
        for name, policy in module.exports().items():
            # On every rank: sharded weights are gathered.
            probe, weights = probe_policy(policy, module.tokenizer), whole_weights(policy)
            folder = self._path(trainer, name)
            on_rank_zero(trainer, partial(export_policy, policy, module.tokenizer, folder, weights, probe, trial))

    def _path(self, trainer: pl.Trainer, name: str) -> Path:
        # Not `resolve`: a link is followed when it is written to, and the name of a critic's folder stays beside it.
        return Path(os.path.abspath(Path(trainer.default_root_dir) / Path(self.folder).expanduser()) + name)

    def _check_target(self, trainer: pl.Trainer, module: PolicyModule, name: str, kept: list[Path]) -> None:
        """Refuse a folder whose replacement would destroy what the run writes or starts from."""
        folder = self._path(trainer, name).resolve()
        clear_leftovers(folder)
        if any(place.is_relative_to(folder) for place in kept):
            raise ValueError(
                f"HFExport.folder {self.folder!r}: {folder} holds the run's own files; write a name such as export."
            )
        proxies = [each.proxy for each in trainer.callbacks if isinstance(each, EntropyFilter)]  # type: ignore[attr-defined]
        specs = [policy.spec for policy in module.policies()] + [proxy for proxy in proxies if proxy is not None]
        for source in (source for spec in specs for source in source_folders(spec)):
            if source.is_relative_to(folder):
                raise ValueError(
                    f"HFExport would replace {source}, from which this run starts; "
                    "write another trainer.default_root_dir or another HFExport.folder."
                )
        check_replaceable(folder)


def _folders_of_run(trainer: pl.Trainer) -> list[Path]:
    savers = [saver.dirpath for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    return [Path(place).resolve() for place in (trainer.default_root_dir, trainer.log_dir, *savers) if place]


@contextmanager
def _averaged(trainer: pl.Trainer, module: PolicyModule) -> Iterator[None]:
    """Run the block with averaged weights in the module, if a callback averages them: validation sees these too."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for average in averages:
        average.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for average in reversed(averages):
            average.on_validation_epoch_end(trainer, module)
