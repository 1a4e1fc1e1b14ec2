"""Reading of a pipeline file: its stages, and one line for whatever is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lit_rl.cli.configs import find_config, read_yaml
from lit_rl.cli.stages import FOLDER_OPTIONS, STAGE_COMMANDS, Stage

KEYS = {"compare": ("run", "policies", "config", "set"), "export": ("run", "source", "set")}
"""Keys of stages."""
OTHER_KEYS = ("run", "config", "set")


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
    entry = entry if isinstance(entry, dict) else {str(entry): None}
    run = entry.get("run")
    keys = KEYS.get(run, OTHER_KEYS) if isinstance(run, str) else OTHER_KEYS
    unknown = sorted(map(str, set(entry) - set(keys)))
    if unknown:
        listed = ", ".join(f"`{key}`" for key in keys[:-1])
        raise ValueError(f"{where} has {', '.join(unknown)}; a stage holds {listed} and `{keys[-1]}`.")
    if run not in STAGE_COMMANDS:
        raise ValueError(f"{where} runs {run!r}; write one of {', '.join(STAGE_COMMANDS)}.")
    configs = entry.get("config") or []
    configs = configs if isinstance(configs, list) else [configs]
    if not all(isinstance(config, str) for config in configs):
        raise ValueError(f"{where} has config {entry['config']!r}; write the name of a config, or a list of names.")
    overrides = _overrides(where, run, entry.get("set") or {})
    return Stage(name, run, configs, overrides, root / name, _inputs(where, entry))


def _inputs(where: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """Arguments of a stage's command before its options.

    Raises:
        ValueError: if the stage lacks its policies or its source.
    """
    if entry["run"] == "export":
        if not isinstance(entry.get("source"), str):
            raise ValueError(f"{where} has source {entry.get('source')!r}; write a folder, such as ${{stages.sft.export}}.")
        return (entry["source"],)
    if entry["run"] != "compare":
        return ()
    policies = entry.get("policies")
    if not isinstance(policies, dict) or not all(isinstance(value, str) for value in policies.values()):
        raise ValueError(f"{where} has policies {policies!r}; write a mapping such as {{sft: ${{stages.sft.export}}}}.")
    return tuple(f"{name}={source}" for name, source in policies.items())


def _overrides(where: str, run: str, overrides: Any) -> dict[str, Any]:
    """Check the options that a stage sets, and return them.

    Raises:
        ValueError: if they are not a mapping of dotted names to values that a flag can have.
    """
    if not isinstance(overrides, dict):
        raise ValueError(f"{where} has set {overrides!r}; write a mapping such as {{trainer.max_steps: 100}}.")
    for key, value in overrides.items():
        if not isinstance(key, str) or not re.fullmatch(r"[\w.]+\+?", key):
            raise ValueError(f"{where} sets {key!r}; write the dotted name of an option.")
        if key in ("trainer.default_root_dir", FOLDER_OPTIONS.get(run, "").removeprefix("--")):
            raise ValueError(f"{where} sets {key}, which is the pipeline's own: {{folder}}/{{name of the stage}}.")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} sets {key} to {value!r}; write a text, a number, a list or a mapping.") from error
    return overrides
