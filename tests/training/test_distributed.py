"""Two processes train like one: the same gradient, weights and sampled text, for DDP and FSDP2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_runs import LONG_RUNS, RESUMED, RUNS, STRATEGIES, exported, fit

HERE = Path(__file__).parent.parent
GRADIENTS = [name for name in RUNS if "gradient" in name]
TRAININGS = [name for name in RUNS if "gradient" not in name]


def launch(file: Path, which: str) -> dict:
    """Outcome of every run, or every long one, on two gloo processes: by strategy and name."""
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


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two") / "results.pt", "runs")


@pytest.fixture(params=STRATEGIES)
def two(request, both):
    return both[request.param]


@pytest.fixture(scope="module")
def one():
    return {name: fit(name) for name in RUNS}


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def assert_near(name: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float) -> None:
    assert expected, name
    for tensor, value in expected.items():
        assert relative_difference(tensors[tensor], value) < bound, (name, tensor)


def test_two_processes_resume_to_the_last_bit(two):
    for name in RESUMED:
        for tensor, value in two[name]["weights"].items():
            assert torch.equal(two[name]["resumed weights"][tensor], value), (name, tensor)


def test_ranks_end_a_rollout_early_together(one, two):
    """In one of these three one rank alone would have gone on; the mean of both is what decides."""
    name = "ppo ending rollouts early"
    assert two[name]["rollouts"] == one[name]["rollouts"] == 3


def test_weights_of_two_processes_are_those_of_one(one, two):
    for name in TRAININGS:
        assert_near(name, two[name]["weights"], one[name]["weights"], 1e-5)


def test_two_processes_sample_the_text_of_one(one, two):
    for name in RUNS:
        assert two[name]["texts"] == one[name]["texts"], name
        assert bool(one[name]["texts"]) == ("sft" not in name), name


def test_two_processes_share_tokens_unequally(one, two):
    """Else a mean over ranks would do for counts over all ranks."""
    for name in ("grpo with everything", "gradient of grpo with everything"):
        tokens = two[name]["tokens"]
        assert sum(tokens) == one[name]["tokens"][0], name
        assert tokens[0] != tokens[1], name


def test_gradient_of_two_processes_is_that_of_one_in_float64(one, two):
    for name in GRADIENTS:
        assert_near(name, two[name]["gradients"], one[name]["gradients"], 1e-10)


def test_rows_that_could_not_be_scored_are_counted_over_all_processes(one, two):
    name = "gradient of grpo with failing rewards"
    assert 0 < one[name]["metrics"]["reward/errors"] < 64
    for metric in ("reward/errors", "reward", "reward_std", "loss"):
        assert two[name]["metrics"][metric] == pytest.approx(one[name]["metrics"][metric]), metric


def test_two_processes_log_the_metrics_of_one(one, two):
    for name in TRAININGS:
        assert two[name]["metrics"] == pytest.approx(one[name]["metrics"], rel=1e-4, abs=1e-5), name


def test_an_adapter_is_merged_and_exported_by_two_processes_as_by_one(two, tmp_path):
    assert_near("exported", two["exported"], exported(tmp_path), 1e-5)


def test_all_processes_end_if_one_cannot_export(two):
    for error in two["errors"]:
        assert "a_file" in error


@pytest.mark.parametrize("splits", [1, 4])
def test_gradient_does_not_depend_on_the_micro_batches(one, splits):
    """``one`` has two micro-batches per optimizer step; one and four give the same gradient."""
    for name in GRADIENTS:
        assert_near(name, fit(name, accumulate=splits)["gradients"], one[name]["gradients"], 1e-10)


@pytest.mark.long
def test_two_processes_that_compile_train_like_one_that_does(tmp_path):
    (name,) = LONG_RUNS
    one, both = fit(name), launch(tmp_path / "results.pt", "long")
    for strategy in STRATEGIES:
        two = both[strategy][name]
        assert two["texts"] == one["texts"], strategy
        assert_near(strategy, two["weights"], one["weights"], 1e-5)
