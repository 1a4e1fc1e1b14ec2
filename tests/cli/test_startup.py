"""Start-up: help and mistakes are answered without importing what takes seconds to import."""

import json
import subprocess
import sys

from tiny_runs import tiny_config, write_yaml

DRIVER = """
import json, sys
from lit_rl.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
HEAVY = {"torch", "lightning", "transformers", "jsonargparse", "numpy", "matplotlib"}


def answer(*args: str) -> tuple[str, set[str]]:
    """Text that a command line prints or ends with, and the packages that its process imported."""
    done = subprocess.run([sys.executable, "-c", DRIVER, *args], capture_output=True, text=True, check=True)
    text, modules = done.stdout.rstrip().rsplit("\n", 1)
    return text, set(json.loads(modules))


def test_help_and_mistakes_are_answered_without_torch_and_lightning(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, "GRPO"))
    (tmp_path / "broken.yaml").write_text("trainer:\n\tmax_steps: 3\n")
    stages = {"a": {"run": "fit", "config": config}, "b": {"run": "fit", "config": config, "set": {"trainer.max_stepz": 3}}}
    pipeline = write_yaml(tmp_path / "pipeline.yaml", {"folder": str(tmp_path / "runs"), "stages": stages})
    cases = [
        (["--help"], "lit-rl pipeline FILE"),
        ([], "write lit-rl and one of fit"),
        (["fti"], "Did you mean 'fit'?"),
        (["fit", "--config", "sft_arithmetik"], "Did you mean 'sft_arithmetic'?"),
        (["fit", "--config", str(tmp_path / "broken.yaml")], "line 2: this is not YAML"),
        (["fit", "--config", config, "--model.grup_size", "8"], "Did you mean 'model.group_size'?"),
        (["fit", "--config", config, "--model.policy.gather", "layer"], "is called 'model.policy.unshard' now."),
        (["compare", "--help"], "Answers are read from completions alone"),
        (["compare", "a=x", "b=y", "--config", config, "--splt", "val"], "Did you mean 'split'?"),
        (["pipeline", "--help"], "A finished stage is skipped"),
        (["pipeline", pipeline], "stage 'b': unknown option 'trainer.max_stepz'."),
    ]
    for args, expected in cases:
        text, modules = answer(*args)
        assert expected in text, (args, text)
        assert not modules & HEAVY, args
