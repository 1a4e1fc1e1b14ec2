"""The smallest configs that the command line runs, for the tests of everything that starts there."""

import sys
from pathlib import Path

import pytest
import yaml

from lit_rl.cli.main import main

POLICY = {"config": {"model_type": "llama", "max_position_embeddings": 64}, "size": "tiny", "tokenizer": "arithmetic"}
EVALUATION = {"max_new_tokens": 4}


def tiny_config(folder: Path, algorithm: str = "SFT", callbacks: tuple = (), **trainer) -> dict:
    """Two steps on sums of one-digit numbers, nothing shown."""
    model: dict = {"policy": POLICY, "evaluation": {"class_path": "Evaluation", "init_args": EVALUATION}}
    model |= {"sampler": {"max_new_tokens": 4}, "group_size": 2} if algorithm == "GRPO" else {}
    data = {"grammar": {"max_digits": 1}, "batch_size": 4, "epoch_size": 16, "val_problems": 8, "test_problems": 8}
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 2,
    }
    return {
        "trainer": quiet | {"default_root_dir": str(folder), "callbacks": list(callbacks)} | trainer,
        "model": {"class_path": algorithm, "init_args": model},
        "data": {"class_path": "Arithmetic", "init_args": data},
    }


def write_yaml(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def lit_rl(*args: object) -> None:
    """The command line in this process."""
    before = sys.argv
    sys.argv = ["lit-rl"]
    try:
        main([str(arg) for arg in args])
    finally:
        sys.argv = before


def refusal(*args: object) -> str:
    """The one line that a wrong command line ends with."""
    with pytest.raises(SystemExit) as stop:
        lit_rl(*args)
    message = stop.value.code
    assert isinstance(message, str), "it ends with a message and so with an exit status of 1"
    assert message.startswith("lit-rl: ")
    assert "\n" not in message
    return message
