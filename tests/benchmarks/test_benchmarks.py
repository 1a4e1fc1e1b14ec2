"""Every benchmark runs, at a size that says nothing about speed, and prints one JSON line per workload."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def lines(name: str, *flags: str) -> list[dict]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--workloads", "tiny", "--runs", "1", "--threads", "1", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"benchmark"')]


@pytest.mark.parametrize("name", ["grpo_step", "sft_step"])
def test_a_step_is_measured_beside_trl(name):
    pytest.importorskip("trl")
    for line in lines(name, "--against", "trl"):
        assert line["ratio"] == pytest.approx(line["trl/seconds"] / line["lit_rl/seconds"], rel=0.2)


def test_sampling_is_measured_beside_generate():
    with_end, without = lines("sampling", "--against", "hf")
    assert with_end["end_token"]
    assert not without["end_token"]
    assert min(with_end["ratio"], without["ratio"]) > 0


def test_memory_is_measured_in_processes_of_their_own():
    (line,) = lines("memory")
    assert line["lit_rl/mib"] > 0
    assert line["all_logits/mib"] > 0


def test_filtering_a_corpus_is_measured_twice():
    (line,) = lines("entropy_filter")
    assert 0 < line["lit_rl/second_seconds"] < line["lit_rl/first_seconds"]
    assert line["tokens"] == 4_000


def test_the_trainer_is_measured_beside_bare_loops():
    (line,) = lines("overhead")
    assert line["overhead/bare"] == pytest.approx(line["trainer/seconds"] / line["bare/seconds"] - 1, abs=0.05)


@pytest.mark.long
def test_a_compiled_step_is_measured():
    assert all(line["compile"] for line in lines("grpo_step", "--compile"))
