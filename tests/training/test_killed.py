"""A process that is killed without warning, and the run that goes on from the checkpoint that it left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from tiny_runs import lit_rl, tiny_config, write_yaml

from lit_rl.cli.configs import last_checkpoint

SAVER = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}
KILLER = {"class_path": "resumed_runs.Killed", "init_args": {"step": 6}}
STEPS = 8


def config(folder: Path, *callbacks: dict) -> str:
    """GRPO with two steps a rollout, a checkpoint at each step and a cosine schedule."""
    folder.mkdir(exist_ok=True)
    content = tiny_config(folder, "GRPO", callbacks=(SAVER, *callbacks), max_steps=STEPS, limit_val_batches=0)
    content["model"]["init_args"] |= {"minibatches": 2, "kl_coef": 0.1, "schedule": {"name": "cosine", "warmup_steps": 2}}
    return write_yaml(folder / f"{len(callbacks)}.yaml", content)


def start_a_run_that_is_killed(file: str) -> None:
    command = [sys.executable, "-m", "lit_rl", "fit", "--config", file]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]


def test_a_killed_run_goes_on_to_the_same_weights_and_optimizer_state(tmp_path):
    """Killed while it makes the checkpoint of step 6, it goes on from step 5, inside a rollout."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lit_rl("fit", "--config", config(whole))
    start_a_run_that_is_killed(config(killed, KILLER))
    left = last_checkpoint(killed)
    assert left is not None
    assert torch.load(left, weights_only=True)["global_step"] == 5
    lit_rl("fit", "--config", config(killed), "--ckpt_path", "last")
    ends = [torch.load(last_checkpoint(folder), weights_only=True) for folder in (whole, killed)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == STEPS
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    assert str(ends[0]["optimizer_states"]) == str(ends[1]["optimizer_states"])
