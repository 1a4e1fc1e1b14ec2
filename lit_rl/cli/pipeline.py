"""Several runs in a row by one command: ``lit-rl pipeline FILE``.

A stage is ``fit``, ``validate``, ``test`` or ``predict`` with configs and overrides, and runs in a process of its own. It
takes what an earlier stage made by name: ``${stages.sft.export}``. A finished stage is skipped when the pipeline is
started again, an interrupted one goes on from its last checkpoint, one whose config or input changed runs anew beside what
it left, and ``report.json`` and ``curve.png`` show all stages.

    name: quickstart
    folder: runs/quickstart
    stages:
      sft: {run: fit, config: quickstart_sft}
      grpo:
        run: fit
        config: [quickstart_grpo]
        set: {model.policy.pretrained: "${stages.sft.export}"}
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lit_rl.cli.configs import find_config, last_checkpoint, read_yaml
from lit_rl.files import write_text
from lit_rl.reports.curves import draw_curves, read_curve
from lit_rl.reports.tables import band_table

say = Console(soft_wrap=True, highlight=False).print
SUBCOMMANDS = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline."""

    name: str
    run: str
    configs: list[str]
    overrides: dict[str, Any]
    folder: Path

    @property
    def artefacts(self) -> dict[str, str]:
        """What later stages may take by name."""
        last = last_checkpoint(self.folder)
        return {
            "folder": str(self.folder),
            "export": str(self.folder / "export"),
            "checkpoint": str(last or self.folder / "last.ckpt"),
            "duration": _as_max_time(self.report.get("seconds", 1.0)),
        }

    @property
    def status(self) -> dict[str, Any]:
        """What is known of its last run."""
        file = self.folder / "stage.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def report(self) -> dict[str, Any]:
        """What its run reported (`Improvement`)."""
        file = self.folder / "report.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def command(self, earlier: list[Stage]) -> list[str]:
        """The command line of this stage, references to earlier ones filled in."""
        args = [self.run]
        for config in self.configs:
            args += ["--config", config]
        args += ["--trainer.default_root_dir", str(self.folder)]
        for key, value in self.overrides.items():
            text = value if isinstance(value, str) else json.dumps(value)
            args += [f"--{key}", _fill_in(text, earlier)]
        return args


def _as_max_time(seconds: float) -> str:
    """How ``trainer.max_time`` writes it: days, hours, minutes and seconds."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24:02d}:{hours % 24:02d}:{minutes:02d}:{rest:02d}"


def load_stages(file: str, folder: Path | None = None) -> tuple[Path, list[Stage]]:
    """Read a pipeline file.

    Raises:
        ValueError: where it is not a pipeline, in one line that names the stage and the key.
    """
    spec = read_yaml(find_config(file))
    if not isinstance(spec.get("stages"), dict):
        raise ValueError(f"{file} is no pipeline: it needs a mapping `stages`, each with `run` and `config`.")
    root = folder or Path(spec.get("folder") or f"runs/{spec.get('name', Path(file).stem)}")
    return root, [_stage(file, name, entry, root / name) for name, entry in spec["stages"].items()]


def _stage(file: str, name: str, entry: Any, folder: Path) -> Stage:
    unknown = sorted(set(entry) - {"run", "config", "set"}) if isinstance(entry, dict) else [str(entry)]
    if unknown:
        raise ValueError(f"{file}: stage {name!r} has {', '.join(unknown)}; a stage holds `run`, `config` and `set`.")
    if entry.get("run") not in SUBCOMMANDS:
        raise ValueError(f"{file}: stage {name!r} runs {entry.get('run')!r}; write one of {', '.join(SUBCOMMANDS)}.")
    configs = entry.get("config") or []
    return Stage(name, entry["run"], [configs] if isinstance(configs, str) else list(configs), entry.get("set") or {}, folder)


def _fill_in(text: str, earlier: list[Stage]) -> str:
    known = {stage.name: stage.artefacts for stage in earlier}

    def value(match: re.Match[str]) -> str:
        stage, artefact = match.group(1), match.group(2)
        if artefact not in known.get(stage, {}):
            raise ValueError(
                f"{match.group(0)}: no earlier stage has it; known are "
                f"{', '.join(f'stages.{name}.{key}' for name, keys in known.items() for key in keys) or 'none'}."
            )
        return known[stage][artefact]

    return re.sub(r"\$\{stages\.(\w+)\.(\w+)\}", value, text)


def run_stage(stage: Stage, earlier: list[Stage]) -> None:
    """Run one stage, or skip it where it is finished."""
    command = stage.command(earlier)
    key, status = _fingerprint(stage, command, earlier), stage.status
    if status and status["fingerprint"] != key:
        say(f"{stage.name} has changed; its earlier run is kept in {_set_aside(stage.folder)}")
        status = {}
    if status.get("finished"):
        say(f"[bold]{stage.name}[/] is finished; skipped")
        return
    checkpoint = last_checkpoint(stage.folder) if status and stage.run == "fit" else None
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    say(f"[bold]{stage.name}[/]: lit-rl {escape(' '.join(command + resume))}")
    status = {"fingerprint": key, "command": command, "finished": False}
    write_text(stage.folder / "stage.json", json.dumps(status, indent=2))
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "lit_rl", *command, *resume], check=False)
    if done.returncode:
        raise ValueError(
            f"stage {stage.name!r} failed with exit status {done.returncode}; mend it and start the pipeline again."
        )
    status |= {"finished": True, "process_seconds": round(time.perf_counter() - start, 1)}
    write_text(stage.folder / "stage.json", json.dumps(status, indent=2))


def _set_aside(folder: Path) -> Path:
    """Rename the folder of an earlier run to the first free ``name.1``, ``name.2``, ..."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def _fingerprint(stage: Stage, command: list[str], earlier: list[Stage]) -> str:
    """Of the command, the text of its configs and the runs that it takes from: another one is another run."""
    texts = [Path(find_config(config)).read_text(encoding="utf-8") for config in stage.configs]
    taken = set(re.findall(r"\$\{stages\.(\w+)\.", json.dumps(stage.overrides)))
    inputs = [other.status.get("fingerprint") for other in earlier if other.name in taken]
    return hashlib.sha256(json.dumps([command, texts, inputs]).encode()).hexdigest()[:16]


def stage_report(stage: Stage) -> dict[str, Any]:
    """What a stage reported of itself, with its folder; of an evaluation the figures that it logged."""
    report: dict[str, Any] = {"run": stage.run, "folder": str(stage.folder)}
    report["process_seconds"] = stage.status.get("process_seconds")
    if stage.run in ("validate", "test"):
        report["metrics"] = {name: points[-1][1] for name, points in read_curve(stage.folder).items()}
    return report | stage.report


def main(args: list[str], check_arguments: Callable[[list[str]], None]) -> None:
    """``lit-rl pipeline FILE [--folder DIR]``.

    Args:
        args: the command line behind ``pipeline``.
        check_arguments: raises where a stage's command line is wrong.
    """
    if "--help" in args or "-h" in args:
        print(__doc__)
        return
    if len(args) not in (1, 3) or (len(args) == 3 and args[1] != "--folder"):
        raise ValueError("write `lit-rl pipeline FILE` or `lit-rl pipeline FILE --folder DIR`.")
    root, stages = load_stages(args[0], Path(args[2]) if len(args) == 3 else None)
    for number, stage in enumerate(stages):  # what is wrong with the last stage shows before the first one runs
        try:
            check_arguments(stage.command(stages[:number]))
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from error
    say(f"{len(stages)} stages in {root}: {', '.join(stage.name for stage in stages)}")
    report: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        run_stage(stage, stages[:number])
        report[stage.name] = stage_report(stage)
        write_text(root / "report.json", json.dumps({"stages": report}, indent=2))
    say(f"Report: {root / 'report.json'}")
    curves = {stage.name: read_curve(stage.folder) for stage in stages if stage.run == "fit"}
    if draw_curves(curves, root / "curve.png"):
        say(f"Curve: {root / 'curve.png'}")
    table = band_table({name: entry.get("metrics", {}) for name, entry in report.items()})
    if table:
        write_text(root / "table.md", table + "\n")
        say(escape(table))
    for name, entry in report.items():
        if "improvement" in entry:
            before, after = (100 * entry[key]["value"] for key in ("before", "after"))
            say(f"{name}: {before:.1f} % -> {after:.1f} % in {entry['steps']} steps, {entry['seconds']:.0f} s")
