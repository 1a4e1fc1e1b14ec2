"""What the command line says about a wrong argument or config: one line with the key, the fault and what was meant.

jsonargparse reports for every type that a value might have had why it has not. The fault proper is at the end of the
chain of causes, and the names on the way to it are the key.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lit_rl.files import find_config, suggestion

_WRAPPERS = ('Parser key "', "Does not validate against any of the Union subtypes", "\n- Expected a path but")
_UNKNOWN = (
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
    r"[Oo]ption '(?P<key>[\w.]+)'(?: is not accepted)?",
    r"unrecognized arguments: --(?P<key>[\w.]+)",
)
_SECTIONS = ("init_args", "dict_kwargs")
"""Levels of a config that a flag leaves out."""


class BadArgument(ValueError):
    """What is wrong with one argument.

    Args:
        key: its dotted name.
        reason: what is wrong with it.
        meant: the dotted name that was probably meant, where there is no such argument.
    """

    def __init__(self, key: str, reason: str, meant: str | None = None) -> None:
        hint = f" Did you mean {meant!r}?" if meant else ""
        super().__init__(f"{reason} {key!r}.{hint}" if reason == "unknown option" else f"{key}: {reason}" if key else reason)
        self.key, self.reason, self.meant = key, reason, meant

    def within(self, keys: list[str]) -> BadArgument:
        """The same, seen from the parser around it."""
        meant = ".".join([*keys, self.meant]) if self.meant else None
        return BadArgument(".".join([*keys, self.key] if self.key else keys), self.reason, meant)


class Parser(LightningArgumentParser):
    """Raises `BadArgument` instead of printing its usage; takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is a misspelling that is silently taken.
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _fault(ex or ValueError(message), self) from ex


def explain(error: Exception) -> str:
    """One line about an error that stopped a run."""
    return " ".join(str(_fault(error)).split())


def check_yaml(path: str) -> str:
    """The path, where its file is YAML with named options.

    Raises:
        ValueError: where it is not, with the line.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: this is no YAML: {error.context or ''} {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: this is no YAML text: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a config holds named options such as `trainer:`, not {type(content).__name__}.")
    return path


def resolve_configs(args: list[str]) -> list[str]:
    """Replace config names behind ``--config`` and ``-c`` by the paths of readable configs."""
    resolved = list(args)
    for place, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-c") and equals:
            resolved[place] = f"{flag}={check_yaml(find_config(value))}"
        elif place and args[place - 1] in ("--config", "-c"):
            resolved[place] = check_yaml(find_config(arg))
    return resolved


def _fault(error: Exception, parser: argparse.ArgumentParser | None = None) -> Exception:
    """The reason at the end of a chain of jsonargparse's errors, with the key that leads there."""
    keys: list[str] = []
    outer = error
    while str(error).startswith(_WRAPPERS) and isinstance(error.__cause__, Exception):
        keys += re.findall(r'^Parser key "([\w.]+)"', str(error))
        outer, error = error, error.__cause__
    if isinstance(error, BadArgument):
        return error.within(keys)
    text = str(error)
    unknown = parser and next(filter(None, (re.search(pattern, text) for pattern in _UNKNOWN)), None)
    if unknown:
        names = unknown.groupdict()
        key = f"{names['group']}.{names['key']}" if names.get("group") else names["key"]
        return BadArgument(key, "unknown option", _meant(key, _options(parser))).within(keys)
    if not keys:
        return error
    return BadArgument(".".join(keys), _value_fault(text, str(outer), parser, keys[0]))


def _value_fault(text: str, outer: str, parser: argparse.ArgumentParser | None, key: str) -> str:
    """What is wrong with a value of the option ``key``; ``outer`` lists all types that it might have had."""
    path = re.match(r"Expected a dot import path string: (\S+)|Problem with given class_path '(\S+)'", text)
    if path:
        name = path.group(1) or path.group(2)
        known = _class_names(_typehint(parser, key))
        hint = suggestion(name.split(".")[-1], known) or (f" Known are {', '.join(known)}." if len(known) < 10 else "")
        return f"unknown class {name!r}.{hint}"
    if text.startswith("Expected a "):
        types = re.search(r"Subtypes: \[(.*)\]\n", outer)
        value = re.search(r"G(?:iven|ot) value: (.*)", outer) or re.search(r"Got value: (.*)", text)
        wanted = types.group(1) if types else re.sub(r"^Expected an? |\. Got value.*", "", text)
        wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", wanted).replace("NoneType", "null")
        return f"expected {wanted}" + (f"; got {value.group(1)!r}" if value else "")
    return text


def _options(parser: argparse.ArgumentParser | None) -> list[str]:
    """Dotted names of a parser's options and of its subcommands' options."""
    if parser is None:
        return []
    actions = [action for each in (parser, *_subparsers(parser)) for action in each._actions]
    return sorted({action.dest for action in actions} | set(_SECTIONS))


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [child for action in actions for child in action.choices.values()]


def _meant(key: str, options: list[str]) -> str | None:
    """The option that a misspelt dotted key is closest to, part by part; None where a part is like nothing."""
    meant: list[str] = []
    for part in key.split("."):
        inside = [option.split(".") for option in options if option.split(".")[: len(meant)] == meant]
        known = {option[len(meant)] for option in inside if len(option) > len(meant)}
        if known and part not in known:
            match = re.search(r"'(.*)'", suggestion(part, sorted(known)))
            if match is None:
                return None
            part = match.group(1)
        meant.append(part)
    return ".".join(meant)


def _typehint(parser: argparse.ArgumentParser | None, key: str) -> Any:
    actions = [action for each in (parser, *_subparsers(parser)) for action in each._actions] if parser else []
    return next((action._typehint for action in actions if action.dest == key and hasattr(action, "_typehint")), None)


def _class_names(hint: Any) -> list[str]:
    """Names of all classes that an option of this type may name."""
    if isinstance(hint, type):
        below = [name for child in hint.__subclasses__() for name in [child.__name__, *_class_names(child)]]
        return sorted({name for name in below or [hint.__name__] if not name.startswith("_")})
    parts = hint if isinstance(hint, list) else get_args(hint)
    return sorted({name for part in parts if part is not type(None) for name in _class_names(part)})
