"""The folder of a run: the checkpoint and the log that it goes on with, and how the run ended (``run.json``)."""

from __future__ import annotations

import json
import os
import shlex
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from lit_rl.cli.configs import last_checkpoint
from lit_rl.files import clear_leftovers, write_text
from lit_rl.training.checkpoint_io import read_checkpoint
from lit_rl.training.interruption import Interrupted
from lit_rl.training.metrics_log import MetricsLog


def find_checkpoint(command: str, path: str | None, root: str) -> str | None:
    """The checkpoint that a command begins with, by path; ``last`` stays if there is none to resume.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        path: ``ckpt_path`` as it was given.
        root: the run's folder.

    Raises:
        ValueError: if it is missing or cannot be read, in one line.
    """
    if "://" in root:
        raise ValueError(f"trainer.default_root_dir: {root} is not a local folder; ModelCheckpoint.dirpath may be remote.")
    # A job that SLURM starts again has the command line of its first start.
    requeued = command == "fit" and path is None and "SLURM_JOB_ID" in os.environ and any(Path(root).glob("hpc_ckpt_*.ckpt"))
    if path == "last" or requeued:
        # Lightning looks only where this run would write, and a new run writes to a new folder.
        last = last_checkpoint(Path(root))
        if last is None and command != "fit":
            raise ValueError("ckpt_path: there is no checkpoint below trainer.default_root_dir.")
        # Left as `last`, fit warns and starts anew: one command begins a run and resumes it.
        return path if last is None else str(last)
    if path and path not in ("best", "hpc") and "://" not in path:
        if not Path(path).exists():
            raise ValueError(f"ckpt_path: there is no checkpoint {path!r}.")
        # A sharded checkpoint is a folder.
        if Path(path).is_file():
            read_checkpoint(Path(path))
    return path


class RunFolder(Callback):
    """Identity of a run: the number of its log's folder and its id in W&B, kept in its checkpoints.

    Args:
        root: ``trainer.default_root_dir``.
        checkpoint: path of the checkpoint that the run is resumed from; None for a new run.
    """

    def __init__(self, root: str, checkpoint: str | None) -> None:
        self.root = root
        path = Path(checkpoint or "")
        earlier = read_checkpoint(path).get("run", {}) if path.is_file() else {}
        # A run that is resumed in another folder is another run, which shares its beginning.
        goes_on = bool(earlier) and (
            path.resolve().is_relative_to(Path(root).resolve()) or earlier["folder"] == str(Path(root).resolve())
        )
        self.id: str = earlier["id"] if goes_on else uuid.uuid4().hex[:8]
        self.version: int | None = earlier["version"] if goes_on else None

    def loggers(self, named: list[Logger]) -> list[Logger]:
        """The CSV log, and the loggers that a config names, all of them going on with a resumed run.

        CSV is first: the folder of the first logger is the run's, and pipelines read their curves from it.
        """
        for logger in named:
            if isinstance(logger, WandbLogger):
                self._settle(logger)
        log = MetricsLog(self.root, name="logs", version=self.version)
        self.version = int(log.version)
        return [log, *named]

    def _settle(self, logger: WandbLogger) -> None:
        # What the config says stays: an id names one run for good, and a folder may be shared by several runs.
        if logger._wandb_init["id"] is None:
            logger._wandb_init["id"] = logger._id = self.id
        if logger._wandb_init["dir"] in (None, "."):
            logger._wandb_init["dir"] = logger._save_dir = self.root

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {"id": self.id, "version": self.version, "folder": str(Path(self.root).resolve())}


@contextmanager
def recorded(trainer: pl.Trainer) -> Iterator[None]:
    """Write ``run.json`` around ``fit``: whether the run is finished, its last step, and why it ended."""

    def write(finished: bool, reason: str) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            record = {"finished": finished, "step": trainer.global_step, "reason": reason}
            write_text(Path(trainer.default_root_dir) / "run.json", json.dumps(record))

    if trainer.is_global_zero:
        for place in list(Path(trainer.default_root_dir).rglob("*.new-*")):
            clear_leftovers(place.with_name(place.name.partition(".new-")[0]))
    # Stays if the process is killed.
    write(False, "running")
    try:
        yield
    except SystemExit as stop:
        # Lightning ends with 1 at a Ctrl-C before the run has begun.
        signum = stop.signum if isinstance(stop, Interrupted) else 2
        write(False, f"signal {signum}")
        if trainer.is_global_zero and last_checkpoint(Path(trainer.default_root_dir)):
            rank_zero_info(f"Go on with: {_again(sys.argv[1:])}")
        raise SystemExit(128 + signum) from stop
    except BaseException:
        write(False, "error")
        raise
    write(True, _reason(trainer))
    if trainer.is_global_zero:
        # Otherwise the next job in this folder would go on with the finished run instead of beginning its own.
        newest = last_checkpoint(Path(trainer.default_root_dir))
        for old in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
            if old != newest:
                old.unlink()


def _reason(trainer: pl.Trainer) -> str:
    """Why a run that was not interrupted ended."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps"
    if any(isinstance(each, Timer) and each.time_remaining() == 0 for each in trainer.callbacks):  # type: ignore[attr-defined]
        return "max_time"
    return "early_stop" if trainer.should_stop else "max_epochs"


def _again(args: list[str]) -> str:
    """The command that goes on with a run."""
    kept, skip = [], False
    for arg in args:
        if not skip and not arg.startswith("--ckpt_path"):
            kept.append(arg)
        skip = arg == "--ckpt_path"
    return shlex.join(["lit-rl", *kept, "--ckpt_path", "last"])
