"""Configs and checkpoints by name or path, as the command line takes them."""

from __future__ import annotations

import importlib.resources
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

from lit_rl.cli.errors import suggestion

MAX_DEPTH, MAX_VALUES = 50, 100_000
TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep."


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
    # Not every error has a place, such as one about an unprintable character or a date that does not exist.
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: this is not a YAML text: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: {TOO_DEEP}") from None
    try:
        checked_shape(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must hold named entries such as `trainer:`, not {type(content).__name__}.")
    return content


def checked_shape(content: Any) -> Any:
    """``content``, unless it is nested too deeply or too large.

    Raises:
        ValueError: for a depth or a number of values that no config needs.
    """
    values, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        # A few lines of YAML with aliases may stand for a value inside itself, or for billions of them.
        values += 1
        if depth > MAX_DEPTH or values > MAX_VALUES:
            raise ValueError(TOO_DEEP if depth > MAX_DEPTH else f"it holds more than {MAX_VALUES:,} values.")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1) for each in inner]
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
    """The newest whole checkpoint of the runs below a folder; newer ones that cannot be read are named on stderr."""
    # Not `last.ckpt` alone: a process may have died between the file of a step and its copy under that name.
    for path in sorted(folder.glob("**/*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        # A sharded checkpoint is a folder.
        if path.is_dir() or _is_whole(path):
            return path
        print(f"lit-rl: {path} is not a checkpoint, or was cut off; the one before it is taken.", file=sys.stderr)
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file has all that torch wrote, as far as can be told without torch."""
    # A zip has its directory at the end, so a file that was cut off is not one.
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/data.pkl") for name in file.namelist())
