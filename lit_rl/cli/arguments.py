"""What the command line says about a wrong argument or config: one line with the key, the fault and what was meant.

jsonargparse reports for every type that a value might have had why it has not. The fault proper is at the end of the
chain of causes, and the names on the way to it are the key.
"""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn, get_args

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from lit_rl.cli.configs import find_config, read_yaml, suggestion

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
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.key, self.reason = key, reason

    def within(self, keys: list[str]) -> BadArgument:
        """The same, seen from the parser around it."""
        return BadArgument(".".join([*keys, self.key] if self.key else keys), self.reason)


class UnknownOption(BadArgument):
    """An argument that does not exist.

    Args:
        key: its dotted name.
        meant: the dotted name that was probably meant.
        known: the names that exist where the first wrong part of the key stands.
    """

    def __init__(self, key: str, meant: str | None, known: list[str]) -> None:
        hint = f" Did you mean {meant!r}?" if meant else f" Known here are {', '.join(known)}." if 0 < len(known) < 20 else ""
        super().__init__("", f"unknown option {key!r}.{hint}")
        self.key, self.meant, self.known = key, meant, known

    def within(self, keys: list[str]) -> UnknownOption:
        meant = ".".join([*keys, self.meant]) if self.meant else None
        return UnknownOption(".".join([*keys, self.key]), meant, self.known)


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description."""


class Parser(LightningArgumentParser):
    """Raises `BadArgument` instead of printing its usage; takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is a misspelling that is silently taken.
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        # What is null in a class's own option arrives at the class's parser as the text None.
        args = [re.sub(r"=None$", "=null", arg) for arg in args] if args else args
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.startswith("the following arguments are required"):  # named with the subcommand in front
            message, ex = re.sub(r"\b\w+\.(\w+)", r"\1", message), None
        fault = _fault(ex or ValueError(message), self)
        raise (fault if isinstance(fault, BadArgument) else BadArgument("", str(fault))) from ex


def explain(error: Exception) -> str:
    """One line about an error that stopped a run."""
    return " ".join(str(_fault(error)).split())


def resolve_configs(args: list[str]) -> list[str]:
    """Replace config names behind ``--config`` and ``-c`` by the paths of readable configs."""
    resolved = list(args)
    for place, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-c") and equals:
            resolved[place] = f"{flag}={_readable(value)}"
        elif place and args[place - 1] in ("--config", "-c"):
            resolved[place] = _readable(arg)
    return resolved


def _readable(config: str) -> str:
    path = find_config(config)
    read_yaml(path)
    return path


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
        return UnknownOption(key, *_meant(key, _options(parser))).within(keys)
    if not keys:
        return error
    return BadArgument(".".join(keys), _value_fault(text, str(outer), parser, keys[0]))


def _value_fault(text: str, outer: str, parser: argparse.ArgumentParser | None, key: str) -> str:
    """What is wrong with a value of the option ``key``; ``outer`` lists all types that it might have had."""
    path = re.match(r"Expected a dot import path string: (\S+)|Problem with given class_path '(\S+)'", text)
    if path:
        name = path.group(1) or path.group(2)
        known = _class_names(_typehint(parser, key))
        hint = suggestion(name.split(".")[-1], known) or (f" Known are {', '.join(known)}." if len(known) < 20 else "")
        return f"unknown class {name!r}.{hint}"
    if text.startswith("Expected a "):
        types = re.search(r"Subtypes: \[(.*)\]\n", outer)
        value = re.search(r"(?:Given|Got) value: (.*)", outer) or re.search(r"Got value: (.*)", text)
        wanted = types.group(1) if types else re.sub(r"^Expected an? |\. Got value.*", "", text)
        wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", wanted).replace("NoneType", "null")
        wanted = re.sub(r"Literal\[(.*?)\]", r"\1", wanted)
        return f"expected {wanted}" + (f"; got {value.group(1)!r}" if value else "")
    return text


def _options(parser: argparse.ArgumentParser | None) -> list[str]:
    """Dotted names of a parser's options and of its subcommands' options."""
    if parser is None:
        return []
    actions = [action for each in (parser, *_subparsers(parser)) for action in each._actions]
    return sorted({action.dest for action in actions if action.dest != "help"} | set(_SECTIONS))


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [child for action in actions for child in action.choices.values()]


def _meant(key: str, options: list[str]) -> tuple[str | None, list[str]]:
    """The option that a misspelt dotted key is closest to, part by part, and the names that its first wrong part may have."""
    parts, meant = key.split("."), []  # type: list[str], list[str]
    wrong: list[str] = []
    for place, part in enumerate(parts):
        inside = [option.split(".") for option in options if option.split(".")[:place] == meant]
        known = sorted({option[place] for option in inside if len(option) > place})
        if known and part not in known:
            wrong = wrong or [name for name in known if name not in _SECTIONS]
            close = difflib.get_close_matches(part, known, n=1)
            if not close:
                break
            part = close[0]
        meant.append(part)
    # A class's own options are not the parser's: what stands behind a part that was mended may be right.
    mended = ".".join(meant + parts[len(meant) :])
    return (None if mended == key else mended), wrong


def _typehint(parser: argparse.ArgumentParser | None, key: str) -> Any:
    actions = [action for each in (parser, *_subparsers(parser)) for action in each._actions] if parser else []
    return next((action._typehint for action in actions if action.dest == key and hasattr(action, "_typehint")), None)


def _class_names(hint: Any) -> list[str]:
    """Names of all classes that an option of this type may name."""
    if isinstance(hint, type):
        children: list[type] = hint.__subclasses__()
        below = [name for child in children for name in [child.__name__, *_class_names(child)]]
        return sorted({name for name in below or [hint.__name__] if not name.startswith("_")})
    parts = hint if isinstance(hint, list) else get_args(hint)
    return sorted({name for part in parts if part is not type(None) for name in _class_names(part)})
