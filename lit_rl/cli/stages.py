"""Stages of a pipeline: command line, results and state on disk of each."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rl.cli.configs import find_config, last_checkpoint

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""Commands that run one Trainer."""
STAGE_COMMANDS = (*SUBCOMMANDS, "compare", "export")
"""Commands of stages."""
FOLDER_OPTIONS = {"compare": "--folder"}
"""Option of the folder of a run; of others ``--trainer.default_root_dir``."""


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline.

    Args:
        name: name of the stage in the pipeline.
        run: one of `STAGE_COMMANDS`.
        configs: names or paths of configs.
        overrides: values of options by dotted name, after the configs.
        folder: folder of the run.
        inputs: arguments of the command before its options: policies of ``compare``, adapter of ``export``.
    """

    name: str
    run: str
    configs: list[str]
    overrides: dict[str, Any]
    folder: Path
    inputs: tuple[str, ...] = ()

    @property
    def artefacts(self) -> dict[str, str]:
        """Results that later stages may take, by name."""
        # Before its run a stage has placeholders: later stages' command lines are parsed with them.
        known = {"folder": str(self.folder), "duration": _as_max_time(self.report.get("seconds", 1.0))}
        if self.run in ("fit", "export"):
            known["export"] = str(self.export)
        if self.run == "fit":
            known["checkpoint"] = str(last_checkpoint(self.folder) or self.folder / "last.ckpt")
        if self.run == "compare":
            known["report"] = str(self.folder / "comparison.json")
        return known

    @property
    def export(self) -> Path:
        """Folder of the exported model."""
        return self.folder / "export"

    @property
    def status(self) -> dict[str, Any]:
        """Fingerprint, command and end of the last run (``stage.json``); empty before the first run."""
        return _read_json(self.folder / "stage.json")

    @property
    def end(self) -> dict[str, Any]:
        """How the last ``fit`` ended, as it says itself (``run.json``); empty before the first one."""
        return _read_json(self.folder / "run.json")

    @property
    def report(self) -> dict[str, Any]:
        """Report of the last run (``report.json`` of the callback `Improvement`); empty without one."""
        return _read_json(self.folder / "report.json")

    @property
    def comparison(self) -> dict[str, Any]:
        """Report of the last ``compare`` (``comparison.json``); empty before the first one."""
        return _read_json(self.folder / "comparison.json")

    def command(self, earlier: list[Stage]) -> list[str]:
        """Command line of this stage, references to earlier stages filled in."""
        args = [self.run, *(_fill_in(text, earlier) for text in self.inputs)]
        for config in self.configs:
            args += ["--config", config]
        if self.run == "export":
            args += [str(self.export), "--merge"]
        else:
            args += [FOLDER_OPTIONS.get(self.run, "--trainer.default_root_dir"), str(self.folder)]
        for key, value in self.overrides.items():
            # JSON, which is YAML: the parser reads null, true and lists back, not Python's None and True.
            text = value if isinstance(value, str) else json.dumps(value)
            args += [f"--{key}", _fill_in(text, earlier)]
        return args

    def fingerprint(self, earlier: list[Stage]) -> str:
        """Hash of the command, the texts of the configs and the inputs: another hash means another run."""
        texts = [Path(find_config(config)).read_text(encoding="utf-8") for config in self.configs]
        taken = set(re.findall(r"\$\{stages\.([\w-]+)\.", json.dumps([self.inputs, self.overrides])))
        # Only stages that are referred to: another stage that runs anew is no reason to run this one again.
        before = [other.status.get("fingerprint") for other in earlier if other.name in taken]
        return hashlib.sha256(json.dumps([self.command(earlier), texts, before]).encode()).hexdigest()[:16]

    def finished(self, earlier: list[Stage]) -> bool:
        """Whether the last run is finished and nothing has changed since."""
        return bool(self.status.get("finished")) and self.status.get("fingerprint") == self.fingerprint(earlier)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: this is not what lit-rl has written: {error}; remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: this is not what lit-rl has written: {type(content).__name__}; remove it.")
    return content


def _as_max_time(seconds: float) -> str:
    """Seconds in the notation of ``trainer.max_time``: days, hours, minutes and seconds."""
    # At least a second: a Trainer with no time stops before its first step.
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24:02d}:{hours % 24:02d}:{minutes:02d}:{rest:02d}"


def _fill_in(text: str, earlier: list[Stage]) -> str:
    """A value with the references to earlier stages filled in."""
    known = {stage.name: stage.artefacts for stage in earlier}

    def value(match: re.Match[str]) -> str:
        stage, artefact = match.group(1), match.group(2)
        if artefact not in known.get(stage, {}):
            names = [f"stages.{name}.{key}" for name, keys in known.items() for key in keys]
            raise ValueError(f"{match.group(0)}: no earlier stage has it; known are {', '.join(names) or 'none'}.")
        return known[stage][artefact]

    return re.sub(r"\$\{stages\.([\w-]+)\.(\w+)\}", value, text)
