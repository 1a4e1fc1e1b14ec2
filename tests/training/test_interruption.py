"""Signals to a run: it ends with a checkpoint from which it goes on to the same end, also inside an accumulation window."""

import json
import os
import signal

import kill_runs
import pytest
from kill_runs import at_call, config, differences, end, ending, finish, start
from tiny_runs import lit_rl, tiny_config, write_yaml

from lit_rl.algorithms.module import PolicyModule
from lit_rl.cli.configs import last_checkpoint
from lit_rl.evaluation import Evaluation
from lit_rl.training.collector import Collector

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run leaves, by algorithm."""
    runs = {}

    def get(algorithm):
        if algorithm not in runs:
            folder = tmp_path_factory.mktemp("whole") / "run"
            finish(config(folder, algorithm), folder.with_suffix(".log"))
            runs[algorithm] = end(folder)
        return runs[algorithm]

    return get


def signals(signum, *calls):
    """Preparation of a process that sends itself a signal in the given calls: (number of the call, class, method)."""

    def send_first(real, *args, **kwargs):
        os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    return lambda: [at_call(number, owner, name, send_first) for number, owner, name in calls]


@pytest.mark.parametrize(
    ("algorithm", "signum", "call", "step"),
    [
        # Two micro-batches a step: the third one opens the window of the second step, which is finished.
        pytest.param("SFT", signal.SIGTERM, (3, PolicyModule, "training_step"), 2, id="in an accumulation window"),
        # Two steps a rollout: the second rollout is broken off, after two steps.
        pytest.param("GRPO", signal.SIGINT, (2, Collector, "collect"), 2, id="in a rollout", marks=pytest.mark.long),
        # The second one after the baseline, at the last step.
        pytest.param("GRPO", signal.SIGTERM, (3, Evaluation, "update"), 4, id="in the last validation", marks=pytest.mark.long),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_end(algorithm, signum, call, step, whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "run.log"
    file = config(folder, algorithm)
    assert ending(start(file, log, signals(signum, call))) == 128 + signum
    assert json.loads((folder / "run.json").read_text()) == {"finished": False, "step": step, "reason": f"signal {signum}"}
    assert f"lit-rl fit --config {file} --ckpt_path last" in log.read_text().replace("\n", " ")
    finish(file, log)
    assert differences(whole(algorithm), end(folder)) == []


@pytest.mark.parametrize(
    ("command", "method", "signum"),
    [("validate", "update", signal.SIGTERM), ("test", "update", signal.SIGINT), ("predict", "answer", signal.SIGTERM)],
)
def test_a_signal_ends_an_evaluation_at_once(command, method, signum, tmp_path, monkeypatch):
    answered = []

    def send(self, actor, prompts):
        os.kill(os.getpid(), signum)
        answered.append(prompts)  # not reached

    monkeypatch.setattr(Evaluation, method, send)
    with pytest.raises(SystemExit) as stop:
        lit_rl(command, "--config", write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path / "run")))
    assert stop.value.code == 128 + signum
    assert answered == []


@pytest.mark.long
def test_a_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_rl.training.interruption.SAME_SIGNAL_SECONDS", 0.0)
    folder = tmp_path / "run"
    twice = signals(signal.SIGINT, (3, PolicyModule, "training_step"), (4, PolicyModule, "training_step"))
    assert ending(start(config(folder, "SFT"), tmp_path / "log", twice)) == -signal.SIGINT
    assert json.loads((folder / "run.json").read_text())["reason"] == "running"


@pytest.mark.long
def test_a_job_that_slurm_requeues_inside_an_accumulation_window_goes_on(whole, tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    folder, log = tmp_path / "run", tmp_path / "log"
    file = config(folder, "SFT")
    # SLURM starts a job again with the command line of its first start: without a checkpoint.
    code = ending(start(file, log, signals(signal.SIGUSR1, (3, PolicyModule, "training_step")), resume=()))
    assert code == 128 + signal.SIGUSR1, log.read_text()
    assert called.read_text() == "requeue 7\n"
    assert last_checkpoint(folder).name == "hpc_ckpt_1.ckpt"
    code = ending(start(file, log, resume=()))
    assert code == 0, log.read_text()
    assert differences(whole("SFT"), end(folder)) == []
    assert end(folder)["step"] == kill_runs.STEPS
