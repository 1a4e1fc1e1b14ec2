"""A process that is killed without warning, and the run that goes on from what it left."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tiny_runs import lit_rl, tiny_config, write_yaml

from lit_rl.cli.configs import last_checkpoint

SAVER = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}
STEPS = 60


def config(folder: Path) -> str:
    """GRPO with two steps a rollout, a checkpoint at each step and a cosine schedule."""
    folder.mkdir()
    content = tiny_config(folder, "GRPO", callbacks=(SAVER,), max_steps=STEPS, limit_val_batches=0)
    content["model"]["init_args"] |= {"minibatches": 2, "kl_coef": 0.1, "schedule": {"name": "cosine", "warmup_steps": 2}}
    return write_yaml(folder / "config.yaml", content)


def kill_on_the_way(file: str, folder: Path) -> None:
    """Start the run and kill it when a few checkpoints have been written."""
    command = [sys.executable, "-m", "lit_rl", "fit", "--config", file]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if list(folder.glob("logs/*/checkpoints/*step=[5-9]*.ckpt")) or list(
            folder.glob("logs/*/checkpoints/*step=[1-9][0-9]*")
        ):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "it was killed before it was through"


def test_a_killed_run_goes_on_to_the_same_weights_and_optimizer_state(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lit_rl("fit", "--config", config(whole))
    file = config(killed)
    kill_on_the_way(file, killed)
    lit_rl("fit", "--config", file, "--ckpt_path", "last")
    ends = []
    for folder in (whole, killed):
        newest = last_checkpoint(folder)
        assert newest is not None
        ends.append(torch.load(newest, weights_only=True))
    assert ends[0]["global_step"] == ends[1]["global_step"] == STEPS
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    assert str(ends[0]["optimizer_states"]) == str(ends[1]["optimizer_states"])
