"""Signals: a run that is asked to stop leaves a checkpoint from which it goes on to the last bit.

The state of a run can be kept only between two optimizer steps, since gradients that are half summed up are in no checkpoint.
So a signal ends the step that is being computed and then the run. A rollout or a validation may take minutes and changes
nothing that lasts: it is broken off at once (on one process; several processes must stop at the same step) and made again. An
evaluation by itself ends at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

SAME_SIGNAL_SECONDS = 1.0
"""Ctrl-C reaches a process from the terminal and from the process that started it: both count as one within this time."""


class Interrupted(SystemExit):
    """End of a run by a signal; as an exit status 128 + the signal, as in a shell.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Interruption(Callback):
    """Ends a run at SIGINT, SIGTERM, SIGHUP and SLURM's signal before the end of a job, with a checkpoint."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal
        self._asked_at = 0.0
        self._training = False  # whether this process has begun a step
        self._validating = False
        self._process = 0
        self._trainer: pl.Trainer | None = None

    # --- signals ----------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(trainer)

    # An evaluation by itself has nothing to save, and Lightning would go on with it after a SIGTERM.

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(trainer)

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(trainer)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Take the place of Lightning's handlers, which it has just set and takes away again at the end of the run."""
        self._trainer, self._process = trainer, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, _requeue_signal(trainer)} - {None}:
            signal.signal(signum, self._receive)  # type: ignore[arg-type]

    def _receive(self, signum: int, frame: Any) -> None:
        # Loader workers are forks with the same handler; the process that made them ends them.
        if os.getpid() != self._process:
            return
        now = time.monotonic()
        if signum == signal.SIGINT and self.asked == signal.SIGINT and now - self._asked_at > SAME_SIGNAL_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(self._process, signal.SIGINT)
        if self.asked is not None:
            return
        self.asked, self._asked_at = signum, now
        assert self._trainer is not None
        launcher = self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signum)  # to the processes of the other ranks, which get no signal of their own
        if self._at_once():
            raise Interrupted(signum)
        rank_zero_info(f"{signal.Signals(signum).name}: the run stops after this step; Ctrl-C again stops it at once.")

    def _at_once(self) -> bool:
        """Whether nothing is lost if the run breaks off here."""
        assert self._trainer is not None
        if self._trainer.world_size > 1:
            return not self._training
        stream: Any = self._trainer.lightning_module.stream
        return not self._training or self._validating or bool(stream is not None and stream.in_rollout)

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """End the run here, between two optimizer steps, if a signal came to any rank."""
        asked = self.asked
        if trainer.world_size > 1:
            # All ranks or none: the checkpoint is written by all of them together.
            anywhere = trainer.strategy.reduce_boolean_decision(asked is not None, all=False)
            asked = (asked or signal.SIGTERM) if anywhere else None
        if asked is not None:
            raise Interrupted(asked)

    # --- where the run is -------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._training = True

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._validating = True
        if trainer.state.fn == "validate":
            self._listen(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # This callback is the first: the others' work after a validation is not broken off.
        self._validating = False

    # --- the checkpoint ---------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Interrupted):
            return
        requeue = exception.signum == _requeue_signal(trainer)
        if self._training and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, requeue)
        if requeue and trainer.is_global_zero:
            _requeue()

    def _save(self, trainer: pl.Trainer, requeue: bool) -> None:
        # Random numbers and weights of an evaluation that broke off are put back.
        trainer.lightning_module.on_validation_end()
        if self._validating:
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
            trainer.training = True
        path = _hpc_path(trainer) if requeue else _last_path(trainer)
        if path is None:
            rank_zero_warn("No checkpoint is left: trainer.enable_checkpointing is off.")
            return
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and requeue:
            for old in path.parent.glob("hpc_ckpt_*.ckpt"):
                if old != path:
                    old.unlink(missing_ok=True)
        rank_zero_info(f"Stopped at step {trainer.global_step}; checkpoint: {path}")


def _last_path(trainer: pl.Trainer) -> Path | None:
    """``last.ckpt`` in the folder of the first ModelCheckpoint; None if the Trainer has none."""
    folders = [saver.dirpath for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint) and saver.dirpath]
    if not folders:
        return None
    path = Path(folders[0]) / "last.ckpt"
    if trainer.is_global_zero and path.is_symlink():
        path.unlink()  # `save_last: link`; what it points to is another checkpoint, which stays
    return path


# --- SLURM ----------------------------------------------------------------------------------------------------------


def _requeue_signal(trainer: pl.Trainer) -> signal.Signals | None:
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def _hpc_path(trainer: pl.Trainer) -> Path:
    """The file that Lightning resumes a requeued job from."""
    return Path(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))


def _requeue() -> None:
    """Put the job back into SLURM's queue."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        rank_zero_warn(f"scontrol requeue {job} did not run: {error}; start the job again by hand.")
        return
    if done.returncode:
        rank_zero_warn(f"scontrol requeue {job} failed: {done.stderr.strip()}; start the job again by hand.")
