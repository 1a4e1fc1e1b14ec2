"""Configs and checkpoints by name or path, as the command line takes them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import yaml

from lit_rl.cli.errors import suggestion


def find_config(name: str) -> str:
    """The path of a config given by path, or by the name of one that comes with the package."""
    # The user's file first: it may have the name of a config that comes with the package.
    if Path(name).is_file():
        return name
    folder = importlib.resources.files("lit_rl.configs")
    packaged = folder.joinpath(*f"{name.removesuffix('.yaml')}.yaml".split("/"))
    if packaged.is_file():
        return str(packaged)
    known = sorted(str(path.relative_to(str(folder)))[:-5] for path in Path(str(folder)).rglob("*.yaml"))
    raise ValueError(f"no config {name!r}: it is neither a file nor one of {', '.join(known)}.{suggestion(name, known)}")


def read_yaml(path: str) -> dict[str, Any]:
    """The named entries of a YAML file.

    Raises:
        ValueError: if the file is broken or holds no names, with the line.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = ": ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{path}{line}: this is not YAML: {reason}") from error
    # Not every YAML error has a place, such as one about an unprintable character.
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: this is not a YAML text: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must hold named entries such as `trainer:`, not {type(content).__name__}.")
    return content


def resolve_configs(args: list[str]) -> list[str]:
    """Arguments with the config names after ``--config`` and ``-c`` replaced by the paths of readable configs."""
    resolved = list(args)
    # Only paths reach the parser: it knows no packaged names.
    for place, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-c") and equals:
            resolved[place] = f"{flag}={_readable(value)}"
        elif place and args[place - 1] in ("--config", "-c"):
            resolved[place] = _readable(arg)
    return resolved


def _readable(config: str) -> str:
    path = find_config(config)
    # Read here only to refuse a broken file with its line, before Lightning is imported.
    read_yaml(path)
    return path


def last_checkpoint(folder: Path) -> Path | None:
    """The newest ``last.ckpt`` of the runs below a folder."""
    # Also last-v1.ckpt, which ModelCheckpoint writes if there is a last.ckpt already.
    found = sorted(folder.glob("**/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
