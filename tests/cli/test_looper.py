"""The pipeline `looper` with its 8B model replaced by SmolLM2-135M-Instruct: every stage on a few real questions of GSM8K.

Its base is not quantized: on a CPU each product would dequantize its weights again.
`tests/models/test_smollm2.py` has it in 4 bits.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from math_runs import real_file
from tiny_runs import write_yaml

from lit_rl.cli.configs import find_config, read_yaml

MODEL = Path(__file__).parents[2] / "models" / "smollm2"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not MODEL.is_dir(), reason="models/smollm2 is missing; `make smollm2` makes it"),
]

QUESTIONS = 12
SHORT = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "model.policy.dtype": "float32",
    "model.policy.quantization": None,
    "model.evaluation.max_new_tokens": 160,
}
FIT = {"trainer.max_epochs": None, "trainer.check_val_every_n_epoch": None}


def small(name: str, data: dict[str, str]) -> dict[str, Any]:
    """Options that make a stage of the pipeline small."""
    problems = {f"data.problems.{key}": value for key, value in data.items()} | {"data.problems.eval_problems": 4}
    return (
        SHORT
        | {
            "sft": {
                **FIT,
                **{f"data.{key}": value for key, value in data.items()},
                "model.policy.pretrained": str(MODEL),
                "model.optimizer.lr": 5e-4,
                "trainer.max_steps": 4,
                "trainer.val_check_interval": 32,
                "data.eval_problems": 4,
            },
            "compare_dev": {**{f"data.{key}": value for key, value in data.items()}, "limit": QUESTIONS},
            "rollouts": {
                **{f"data.{key}": value for key, value in data.items()},
                "model.sampler.max_new_tokens": 160,
                "trainer.callbacks": [{"class_path": "RolloutWriter", "init_args": {"limit": QUESTIONS}}],
            },
            "ppo": {**FIT, **problems, "trainer.max_steps": 2, "trainer.val_check_interval": 8},
            "compare": {**{f"data.{key}": value for key, value in data.items()}, "limit": 2 * QUESTIONS},
        }[name]
    )


def test_every_phase_runs_on_a_real_model_and_real_questions(tmp_path):
    data = {"path": real_file("gsm8k_train.jsonl"), "test_path": real_file("gsm8k_test.jsonl")}
    spec = read_yaml(find_config("looper"))
    for name, stage in spec["stages"].items():
        stage["set"] = {**stage.get("set", {}), **small(name, data)}
        if "base" in stage.get("policies", {}):
            stage["policies"]["base"] = str(MODEL)
    command = [sys.executable, "-m", "lit_rl", "pipeline", write_yaml(tmp_path / "looper.yaml", spec), "--folder", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    assert list(report) == ["sft", "compare_dev", "rollouts", "ppo", "compare"]
    recorded = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["number"] for row in recorded}) == len(recorded) == QUESTIONS
    assert all(len({output["arm"] for output in row["arm_outputs"]}) == 8 for row in recorded)
    compared = json.loads((tmp_path / "run" / "compare" / "comparison.json").read_text())
    assert list(compared["policies"]) == ["base", "sft", "ppo"]
    assert compared["questions"] == 2 * QUESTIONS
