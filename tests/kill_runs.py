"""Runs that are killed by SIGKILL and resumed until they end, compared with runs that nobody disturbed.

    python tests/kill_runs.py --kills 60 --seed 1

Weights, optimizer state, report, metrics.csv and samples.jsonl must be equal to the last bit, times aside. A kill comes at a
random moment or in a named phase: while a checkpoint is written (with TMPDIR on another file system) or takes its name, while
an export takes its name, in the validation after the last step, in a rollout, while metrics are written. Libraries are loaded
once: each run is a fork of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_runs import tiny_config, write_yaml

import lit_rl.cli.lightning_cli
import lit_rl.files
import lit_rl.training.metrics_log
from lit_rl.cli.configs import last_checkpoint
from lit_rl.cli.main import main
from lit_rl.evaluation import Evaluation
from lit_rl.training.collector import Collector

torch.set_num_threads(1)
STEPS = 4
CALLBACKS = (
    {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}},
    "HFExport",
    "Improvement",
    {"class_path": "SampleTable", "init_args": {"every_n_steps": 1}},
)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "SFT": {},
    "GRPO": {"minibatches": 2, "kl_coef": 0.1},
    "PPO": {"epochs": 1, "minibatches": 2, "sampler": {"max_new_tokens": 4}},
    "RPT": {"minibatches": 2, "sampler": {"max_new_tokens": 4}, "group_size": 2, "template": "{context}<think>"},
}
"""Options by algorithm; SFT accumulates two micro-batches and has dropout."""

RESUME = ("--ckpt_path", "last")
PHASES = ("random", "checkpoint", "checkpoint name", "export name", "last validation", "rollout", "metrics")


# --- runs ------------------------------------------------------------------------------------------------------------


def config(folder: Path, algorithm: str) -> str:
    """The config of a run; its optimizer takes steps that change the weights visibly."""
    accumulate = 2 if algorithm == "SFT" else 1
    trainer = {"val_check_interval": 2 * accumulate, "check_val_every_n_epoch": None, "max_steps": STEPS}
    content = tiny_config(folder, algorithm, CALLBACKS, accumulate_grad_batches=accumulate, **trainer)
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    model |= ALGORITHMS[algorithm] | {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}}
    if algorithm == "SFT":
        model["policy"] = {**model["policy"], "config": {"model_type": "gpt2", "max_position_embeddings": 64}}
    if algorithm == "RPT":
        model["policy"] = {**model["policy"], "tokenizer": "reasoning"}
        model["evaluation"] = {"class_path": "NextTokenEvaluation", "init_args": {"max_new_tokens": 4}}
        data["positions"] = {"labels_length": 2, "eval_positions": 8}
        content["trainer"]["callbacks"][2] = {
            "class_path": "Improvement",
            "init_args": {"monitor": "val/matched_tokens", "percent": False},
        }
    folder.mkdir(parents=True, exist_ok=True)
    return write_yaml(folder.with_suffix(".yaml"), content)


def start(file: str, output: Path, prepare: Callable[[], None] = lambda: None, resume: tuple[str, ...] = RESUME) -> int:
    """Number of a process that runs ``fit`` on a config, resumed if there is a checkpoint."""

    def run() -> None:
        prepare()
        sys.argv = ["lit-rl"]
        main(["fit", "--config", file, *resume, "--debug"])

    return fork(output, run)


def fork(output: Path, run: Callable[[], None]) -> int:
    """Number of a process that calls a function; what it prints goes to a file."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _write_there()
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _write_there() -> None:
    """Let Python's own streams end in the descriptors 1 and 2: pytest has others, and loggers keep what they began with."""
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)


def ending(process: int) -> int:
    """Exit status of a process; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def finish(file: str, output: Path) -> None:
    """Run to the end."""
    code = ending(start(file, output))
    if code:
        raise RuntimeError(f"the run ended with {code}:\n{output.read_text()[-4000:]}")


# --- kills -----------------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, owner: Any, name: str, dying: Callable[..., Any]) -> None:
    """Let call ``number`` of a function do something else, which ends in death."""
    real = getattr(owner, name)
    calls = iter(range(1, 1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        return dying(real, *args, **kwargs) if next(calls) == number else real(*args, **kwargs)

    setattr(owner, name, call)


def plan(phase: str, number: int) -> Callable[[], None]:
    """Preparation of a process that dies in a phase, at its ``number``-th time."""

    def half_written(real: Any, checkpoint: Any, file: Any, *args: Any) -> None:
        real(checkpoint, whole := io.BytesIO())
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    def done_then_dead(real: Any, *args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        die()

    def between_renames(real: Any, path: Path, new: Path) -> None:
        if path.exists():
            path.rename(lit_rl.files._beside(path, "old"))
        die()

    def at_the_last_step(real: Any, evaluation: Any, actor: Any, batch: Any) -> None:
        if actor.runtime.step == STEPS:
            die()
        real(evaluation, actor, batch)

    def prepare() -> None:
        if phase == "checkpoint":
            at_call(number, torch, "save", half_written)
        if phase == "checkpoint name":
            at_call(number, os, "fsync", done_then_dead)
        if phase == "export name":
            at_call(number, lit_rl.files, "_replace_folder", between_renames)
        if phase == "last validation":
            real = Evaluation.update
            Evaluation.update = lambda *args: at_the_last_step(real, *args)  # type: ignore[method-assign]
        if phase == "rollout":
            at_call(number, Collector, "collect", done_then_dead)
        if phase == "metrics":
            at_call(number, lit_rl.training.metrics_log._Rows, "save", done_then_dead)

    return prepare


def kill(file: str, output: Path, phase: str, number: int, seconds: float) -> bool:
    """Run and be killed; whether the kill came before the end."""
    if phase != "random":
        code = ending(start(file, output, plan(phase, number)))
    else:
        process = start(file, output)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = ending(process)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run ended with {code}:\n{output.read_text()[-4000:]}")
    return code != 0


# --- ends ------------------------------------------------------------------------------------------------------------


def end(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, without times."""
    path = last_checkpoint(folder)
    assert path is not None
    checkpoint = torch.load(path, weights_only=True)
    report = json.loads((folder / "report.json").read_text())
    logs = max(folder.glob("logs/version_*/metrics.csv"), key=lambda log: int(log.parent.name.split("_")[1]))
    header, *rows = (row.split(",") for row in logs.read_text().splitlines())
    shown = [place for place, name in enumerate(header) if not name.startswith("time/") and "per_second" not in name]
    samples = folder / "samples.jsonl"
    return {
        "step": checkpoint["global_step"],
        "weights": {name: value.numpy().tobytes() for name, value in checkpoint["state_dict"].items()},
        "optimizer": str(checkpoint["optimizer_states"]),
        "report": {key: value for key, value in report.items() if key != "seconds"},
        "metrics": [[row[place] for place in shown] for row in [header, *rows]],
        "samples": samples.read_text() if samples.exists() else "",
        "run": json.loads((folder / "run.json").read_text()),
        "leftovers": sorted(str(path.relative_to(folder)) for path in folder.rglob("*.new-*")),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one if one[key] != other[key]]


def killed_run(whole: dict[str, Any], folder: Path, algorithm: str, phase: str, numbers: random.Random, seconds: float) -> str:
    """One run with one kill or two; returns a row of the table: phase, kills and what differs."""
    file, output = config(folder, algorithm), folder.with_suffix(".log")
    moments = []
    for _ in range(numbers.choice((1, 1, 2))):
        # Two steps a rollout, so half as many rollouts.
        number, moment = numbers.randint(1, STEPS // 2 if phase == "rollout" else STEPS), numbers.uniform(0, seconds)
        hit = kill(file, output, phase, number, moment)
        moments.append((f"{moment:.2f} s" if phase == "random" else f"no. {number}") + ("" if hit else " (too late)"))
    finish(file, output)
    different = differences(whole, end(folder))
    result = "DIFFERS: " + ", ".join(different) if different else "equal"
    return f"{algorithm:5} {phase:16} {', '.join(moments):24} {result}"


def main_loop(kills: int, seed: int, root: Path, algorithms: list[str], phases: list[str]) -> int:
    """Run all; returns how many runs differ."""
    # Checkpoints would be copied over their target from here, if Lightning wrote them.
    os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else str(root)
    wholes, seconds = {}, {}
    for algorithm in algorithms:
        begin = time.perf_counter()
        finish(config(root / algorithm, algorithm), root / f"{algorithm}.log")
        wholes[algorithm], seconds[algorithm] = end(root / algorithm), time.perf_counter() - begin
    failed = 0
    for number in range(kills):
        algorithm = algorithms[number % len(algorithms)]
        phase = phases[number // len(algorithms) % len(phases)]
        phase = "random" if algorithm == "SFT" and phase == "rollout" else phase
        numbers, folder = random.Random(1000 * seed + number), root / f"{number}"
        row = killed_run(wholes[algorithm], folder, algorithm, phase, numbers, seconds[algorithm])
        print(f"{number:3} {row}", flush=True)
        failed += "DIFFERS" in row
        if "DIFFERS" not in row:
            shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS))
    parser.add_argument("--phases", nargs="*", default=list(PHASES))
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main_loop(given.kills, given.seed, given.keep or Path(temporary), given.algorithms, given.phases))
