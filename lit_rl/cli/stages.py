"""Stages of a pipeline: read from its file, with the command line and the state on disk of each."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rl.cli.configs import find_config, last_checkpoint, read_yaml

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""Commands that run a Trainer."""


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline.

    Args:
        name: name of the stage in the pipeline.
        run: ``fit``, ``validate``, ``test`` or ``predict``.
        configs: names or paths of configs.
        overrides: values of options by dotted name, after the configs.
        folder: folder of the run.
    """

    name: str
    run: str
    configs: list[str]
    overrides: dict[str, Any]
    folder: Path

    @property
    def artefacts(self) -> dict[str, str]:
        """Results that later stages may take, by name."""
        last = last_checkpoint(self.folder)
        # Before its run a stage has placeholders: later stages' command lines are parsed with them.
        return {
            "folder": str(self.folder),
            "export": str(self.folder / "export"),
            "checkpoint": str(last or self.folder / "last.ckpt"),
            "duration": _as_max_time(self.report.get("seconds", 1.0)),
        }

    @property
    def status(self) -> dict[str, Any]:
        """Fingerprint, command and end of the last run (``stage.json``); empty before the first run."""
        return _read_json(self.folder / "stage.json")

    @property
    def report(self) -> dict[str, Any]:
        """Report of the last run (``report.json`` of the callback `Improvement`); empty without one."""
        return _read_json(self.folder / "report.json")

    def command(self, earlier: list[Stage]) -> list[str]:
        """Command line of this stage, references to earlier stages filled in."""
        args = [self.run]
        for config in self.configs:
            args += ["--config", config]
        args += ["--trainer.default_root_dir", str(self.folder)]
        for key, value in self.overrides.items():
            # JSON, which is YAML: the parser reads null, true and lists back, not Python's None and True.
            text = value if isinstance(value, str) else json.dumps(value)
            args += [f"--{key}", _fill_in(text, earlier)]
        return args

    def fingerprint(self, earlier: list[Stage]) -> str:
        """Hash of the command, the texts of the configs and the inputs: another hash means another run."""
        texts = [Path(find_config(config)).read_text(encoding="utf-8") for config in self.configs]
        taken = set(re.findall(r"\$\{stages\.(\w+)\.", json.dumps(self.overrides)))
        # Only stages that are referred to: another stage that runs anew is no reason to run this one again.
        inputs = [other.status.get("fingerprint") for other in earlier if other.name in taken]
        return hashlib.sha256(json.dumps([self.command(earlier), texts, inputs]).encode()).hexdigest()[:16]

    def finished(self, earlier: list[Stage]) -> bool:
        """Whether the last run is finished and nothing has changed since."""
        return bool(self.status.get("finished")) and self.status["fingerprint"] == self.fingerprint(earlier)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _as_max_time(seconds: float) -> str:
    """Seconds in the notation of ``trainer.max_time``: days, hours, minutes and seconds."""
    # At least a second: a Trainer with no time stops before its first step.
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24:02d}:{hours % 24:02d}:{minutes:02d}:{rest:02d}"


def load_stages(file: str, folder: Path | None = None) -> tuple[Path, list[Stage]]:
    """Read a pipeline file.

    Raises:
        ValueError: if the file is not a pipeline, in one line that names the stage and the key.
    """
    spec = read_yaml(find_config(file))
    if not isinstance(spec.get("stages"), dict):
        raise ValueError(f"{file} is not a pipeline: it needs a mapping `stages`, each with `run` and `config`.")
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
    """A value with the references to earlier stages filled in."""
    known = {stage.name: stage.artefacts for stage in earlier}

    def value(match: re.Match[str]) -> str:
        stage, artefact = match.group(1), match.group(2)
        if artefact not in known.get(stage, {}):
            names = [f"stages.{name}.{key}" for name, keys in known.items() for key in keys]
            raise ValueError(f"{match.group(0)}: no earlier stage has it; known are {', '.join(names) or 'none'}.")
        return known[stage][artefact]

    return re.sub(r"\$\{stages\.(\w+)\.(\w+)\}", value, text)
