"""Two processes train like one: the same gradient, weights and sampled text, for DDP and FSDP2."""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_runs import RESUMED, RUNS, exported, fit

HERE = Path(__file__).parent.parent
GRADIENTS = [name for name in RUNS if "gradient" in name]


def launch(file: Path, which: str) -> dict:
    """Outcomes of a set of runs on two gloo processes, by strategy and name, and of exports by strategy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "distributed_runs.py"), str(file), which]
    processes = [
        subprocess.Popen(
            command,
            cwd=file.parent,
            env={**environment, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=1800)[0].decode() for process in processes]  # against a hang, not for speed
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in output)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module", params=["ordinary", pytest.param("all", marks=pytest.mark.long)])
def both(request, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two") / "results.pt", request.param)


@pytest.fixture(params=["ddp", "fsdp2"])
def two(request, both):
    """Outcomes of the runs under a strategy, by name."""
    return both["runs"][request.param]


@functools.cache
def one(name: str) -> dict:
    """Outcome of a run on one process."""
    return fit(name)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()  # quantized weights are integers
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def assert_near(name: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float) -> None:
    assert expected, name
    for tensor, value in expected.items():
        assert relative_difference(tensors[tensor], value) < bound, (name, tensor)


def test_two_processes_resume_to_the_last_bit(two):
    resumed = [name for name in RESUMED if name in two]
    assert resumed
    for name in resumed:
        for tensor, value in two[name]["weights"].items():
            assert torch.equal(two[name]["resumed weights"][tensor], value), (name, tensor)


def test_ranks_end_a_rollout_early_together(both):
    """In one of these three one rank alone would have gone on; the mean of both is what decides."""
    name = "ppo ending rollouts early"
    for two in both["runs"].values():
        assert two.get(name, one(name))["rollouts"] == one(name)["rollouts"] == 3


def test_weights_of_two_processes_are_those_of_one(two):
    for name in two.keys() - GRADIENTS:
        assert_near(name, two[name]["weights"], one(name)["weights"], 1e-5)


def test_two_processes_sample_the_text_of_one(two):
    for name in two:
        assert two[name]["texts"] == one(name)["texts"], name
        assert bool(one(name)["texts"]) == ("sft" not in name), name


def test_two_processes_share_tokens_unequally(two):
    """Else a mean over ranks would do for counts over all ranks."""
    names = [name for name in two if name.endswith("grpo with everything")]
    assert names
    for name in names:
        tokens = two[name]["tokens"]
        assert sum(tokens) == one(name)["tokens"][0], name
        assert tokens[0] != tokens[1], name


def test_gradient_of_two_processes_is_that_of_one_in_float64(two):
    names = [name for name in GRADIENTS if name in two]
    assert names
    for name in names:
        assert_near(name, two[name]["gradients"], one(name)["gradients"], 1e-10)


def test_rows_that_could_not_be_scored_are_counted_over_all_processes(both):
    name = "gradient of grpo with failing rewards"
    alone = one(name)["metrics"]
    assert 0 < alone["reward/errors"] < 64
    for metric in ("reward/errors", "reward", "reward_std", "loss"):
        assert both["runs"]["ddp"][name]["metrics"][metric] == pytest.approx(alone[metric]), metric


def test_two_processes_log_the_metrics_of_one(two):
    for name in two.keys() - GRADIENTS:
        assert two[name]["metrics"] == pytest.approx(one(name)["metrics"], rel=1e-4, abs=1e-5), name


def test_an_adapter_is_merged_and_exported_by_two_processes_as_by_one(both, tmp_path):
    for outcome in both["exports"].values():
        assert_near("exported", outcome["exported"], exported(tmp_path), 1e-5)


def test_all_processes_end_if_one_cannot_export(both):
    for outcome in both["exports"].values():
        for error in outcome["errors"]:
            assert "a_file" in error


@pytest.mark.parametrize("splits", [1, 4])
def test_gradient_does_not_depend_on_the_micro_batches(splits):
    """The run on one process has two micro-batches per optimizer step; one and four give the same gradient."""
    for name in GRADIENTS:
        assert_near(name, fit(name, accumulate=splits)["gradients"], one(name)["gradients"], 1e-10)
