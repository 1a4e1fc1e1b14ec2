"""Every benchmark runs, at a size that says nothing about speed, and prints one JSON line per workload."""

import importlib
import json
import random
import string
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def lines(capsys, monkeypatch):
    """Runs a benchmark in this process and returns its JSON lines."""
    monkeypatch.syspath_prepend(ROOT)

    def run(name: str, *flags: str) -> list[dict]:
        importlib.import_module(f"benchmarks.{name}").main(list(flags))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"benchmark"')]

    return run


TINY = ("--workloads", "tiny", "--runs", "1", "--threads", "1")


@pytest.mark.parametrize("name", ["grpo_step", "sft_step"])
def test_a_step_is_measured_beside_trl(lines, name):
    pytest.importorskip("trl")
    for line in lines(name, *TINY, "--against", "trl"):
        assert line["ratio"] == pytest.approx(line["trl/seconds"] / line["lit_rl/seconds"], rel=0.2)


def test_sampling_is_measured_beside_generate(lines):
    with_end, without = lines("sampling", *TINY, "--against", "hf")
    assert with_end["end_token"]
    assert not without["end_token"]
    assert min(with_end["ratio"], without["ratio"]) > 0


@pytest.mark.long
def test_memory_is_measured_in_processes_of_their_own(lines):
    (line,) = lines("memory", *TINY)
    assert line["lit_rl/mib"] > 0
    assert line["all_logits/mib"] > 0


def test_filtering_a_corpus_is_measured_twice(lines):
    (line,) = lines("entropy_filter", *TINY)
    assert line["lit_rl/first_seconds"] > 0
    assert line["lit_rl/second_seconds"] > 0
    assert line["tokens"] == 4_000


def test_the_trainer_is_measured_beside_bare_loops(lines):
    (line,) = lines("overhead", *TINY)
    assert line["overhead/bare"] == pytest.approx(line["trainer/seconds"] / line["bare/seconds"] - 1, abs=0.2)


def test_the_error_of_cut_windows_is_measured_by_context(lines, tmp_path):
    text = "".join(random.Random(0).choices(string.ascii_lowercase, k=12_000))
    (tmp_path / "text.txt").write_text(text)
    found = lines("window_context", "--path", str(tmp_path / "text.txt"), "--steps", "1", "--threads", "1")
    assert [line["context_tokens"] for line in found] == [1, 4, 8, 16, 32]
    assert all(line["targets"] > 0 for line in found)


@pytest.mark.long
def test_a_compiled_step_is_measured(lines):
    assert all(line["compile"] for line in lines("grpo_step", *TINY, "--compile"))
