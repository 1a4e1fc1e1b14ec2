"""Two processes train like one: the same gradient, weights and sampled text, for DDP and FSDP2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_runs import LONG_RUNS, RESUMED, RUNS, fit

HERE = Path(__file__).parent.parent


def launch(strategy: str, file: Path, which: str = "runs") -> dict:
    """Run every run, or every long one, on two gloo processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "distributed_runs.py"), strategy, "2", str(file), which]
    processes = [
        subprocess.Popen(
            command, env={**environment, "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in output)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request, tmp_path_factory):
    return launch(request.param, tmp_path_factory.mktemp(request.param) / "results.pt")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    os.chdir(tmp_path_factory.mktemp("one"))
    return {name: fit(name, "auto", 1) for name in RUNS}


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_resume_to_the_last_bit(two, name):
    whole, resumed = two[name]["weights"], two[f"{name}, resumed"]["weights"]
    assert all(torch.equal(resumed[tensor], value) for tensor, value in whole.items())


def test_ranks_end_a_rollout_early_together(one, two):
    """In one of these three one rank alone would have gone on; the mean of both is what decides."""
    name = "ppo ending rollouts early"
    assert two[name]["rollouts"] == one[name]["rollouts"] == 3


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@pytest.mark.parametrize("name", [name for name in RUNS if "gradient" not in name])
def test_weights_of_two_processes_are_those_of_one(one, two, name):
    for tensor, value in one[name]["weights"].items():
        assert relative_difference(two[name]["weights"][tensor], value) < 1e-5, tensor


@pytest.mark.parametrize("name", [name for name in RUNS if "sft" not in name])
def test_two_processes_sample_the_text_of_one(one, two, name):
    assert two[name]["texts"] == one[name]["texts"]


@pytest.mark.parametrize("name", ["grpo with everything", "gradient of grpo with everything"])
def test_two_processes_share_tokens_unequally(one, two, name):
    """Else a mean over ranks would do for counts over all of them."""
    tokens = two[name]["tokens"]
    assert sum(tokens) == one[name]["tokens"][0]
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("name", [name for name in RUNS if "gradient" in name])
def test_gradient_of_two_processes_is_that_of_one_in_float64(one, two, name):
    assert one[name]["gradients"]
    for tensor, value in one[name]["gradients"].items():
        assert relative_difference(two[name]["gradients"][tensor], value) < 1e-10, tensor


@pytest.mark.parametrize("name", [name for name in RUNS if "gradient" not in name])
def test_two_processes_log_the_figures_of_one(one, two, name):
    assert two[name]["metrics"] == pytest.approx(one[name]["metrics"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if "gradient" in name])
@pytest.mark.parametrize("splits", [1, 4])
def test_gradient_does_not_depend_on_the_micro_batches(one, name, splits):
    """``one`` has two micro-batches per optimizer step; one and four give the same gradient."""
    other = fit(name, "auto", 1, accumulate=splits)
    for tensor, value in one[name]["gradients"].items():
        assert relative_difference(other["gradients"][tensor], value) < 1e-10, tensor


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_that_compile_train_like_one_that_does(strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = LONG_RUNS
    one, two = fit(name, "auto", 1), launch(strategy, tmp_path / "results.pt", "long runs")[name]
    assert two["texts"] == one["texts"]
    for tensor, value in one["weights"].items():
        assert relative_difference(two["weights"][tensor], value) < 1e-5, tensor
