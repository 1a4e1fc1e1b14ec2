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
    def end(self) -> dict[str, Any]:
        """How the last ``fit`` ended, as it says itself (``run.json``); empty before the first one."""
        return _read_json(self.folder / "run.json")

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
        taken = set(re.findall(r"\$\{stages\.([\w-]+)\.", json.dumps(self.overrides)))
        # Only stages that are referred to: another stage that runs anew is no reason to run this one again.
        inputs = [other.status.get("fingerprint") for other in earlier if other.name in taken]
        return hashlib.sha256(json.dumps([self.command(earlier), texts, inputs]).encode()).hexdigest()[:16]

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


def load_stages(file: str, folder: Path | None = None) -> tuple[Path, list[Stage]]:
    """Read a pipeline file.

    Raises:
        ValueError: if the file is not a pipeline, in one line that names the stage and the key.
    """
    spec = read_yaml(find_config(file))
    stages = spec.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ValueError(f"{file} is not a pipeline: it needs a mapping `stages`, each with `run` and `config`.")
    unknown = [str(key) for key in spec if key not in ("name", "folder", "stages")]
    if unknown:
        raise ValueError(f"{file} has {', '.join(unknown)}; a pipeline holds `name`, `folder` and `stages`.")
    for key in ("name", "folder"):
        if not isinstance(spec.get(key, ""), str):
            raise ValueError(f"{file}: `{key}` is {spec[key]!r}; write a text.")
    root = folder or Path(spec.get("folder") or f"runs/{spec.get('name') or Path(file).stem}")
    return root, [_stage(file, name, entry, root) for name, entry in stages.items()]


def _stage(file: str, name: Any, entry: Any, root: Path) -> Stage:
    # It names a folder beside those of other stages, and earlier runs of a stage are kept as `name.1`, `name.2`.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,99}", name):
        raise ValueError(f"{file}: a stage is called {name!r}; write letters, digits, _ and -, and a number in quotes.")
    where = f"{file}: stage {name!r}"
    unknown = sorted(map(str, set(entry) - {"run", "config", "set"})) if isinstance(entry, dict) else [str(entry)]
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}; a stage holds `run`, `config` and `set`.")
    if entry.get("run") not in SUBCOMMANDS:
        raise ValueError(f"{where} runs {entry.get('run')!r}; write one of {', '.join(SUBCOMMANDS)}.")
    configs = entry.get("config") or []
    configs = configs if isinstance(configs, list) else [configs]
    if not all(isinstance(config, str) for config in configs):
        raise ValueError(f"{where} has config {entry['config']!r}; write the name of a config, or a list of names.")
    return Stage(name, entry["run"], configs, _overrides(where, entry.get("set") or {}), root / name)


def _overrides(where: str, overrides: Any) -> dict[str, Any]:
    """Check the options that a stage sets, and return them.

    Raises:
        ValueError: if they are not a mapping of dotted names to values that a flag can have.
    """
    if not isinstance(overrides, dict):
        raise ValueError(f"{where} has set {overrides!r}; write a mapping such as {{trainer.max_steps: 100}}.")
    for key, value in overrides.items():
        if not isinstance(key, str) or not re.fullmatch(r"[\w.]+\+?", key):
            raise ValueError(f"{where} sets {key!r}; write the dotted name of an option.")
        if key == "trainer.default_root_dir":
            raise ValueError(f"{where} sets {key}, which is the pipeline's own: {{folder}}/{{name of the stage}}.")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} sets {key} to {value!r}; write a text, a number, a list or a mapping.") from error
    return overrides


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
