"""Parser of the command line: refuses a wrong argument with one line instead of jsonargparse's usage and reports."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn, get_args

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._required import iter_required_keys
from lightning.pytorch.cli import LightningArgumentParser

from lit_rl.cli.errors import SECTIONS, BadArgument, UnknownOption, innermost, unknown_class
from lit_rl.options import first_line
from lit_rl.sampling import Sampler

# jsonargparse has no exception for an unknown option alone: only the text of the error tells.
_UNKNOWN = (
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
    r"[Oo]ption '(?P<key>[\w.]+)'(?: is not accepted)?",
    r"unrecognized arguments: --(?P<key>[\w.]+)",
)
_NO_OPTIONS = ("help", "print_shtab")

# Docstrings of a dataclass's fields are the help of its options. A config may name a sampler's class, such as `ArmSampler`.
set_parsing_settings(docstring_parse_attribute_docstrings=True, subclasses_enabled=[Sampler])


class Parser(LightningArgumentParser):
    """Raises `BadArgument` instead of printing its usage; takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is a misspelling that is silently taken.
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        # A null in a class's own option arrives at the class's parser as the text None.
        args = [re.sub(r"=None$", "=null", arg) for arg in args] if args else args
        group = self._group_to_help(args or [])
        if group:
            formatter = self._get_formatter()
            formatter.start_section(f"{group.title}")
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
            print(formatter.format_help())
            self.exit()
        try:
            return super().parse_args(args, *rest, **options)
        # jsonargparse stumbles over values of a wrong shape: no code of this package has run yet.
        except (TypeError, AttributeError, LookupError, RecursionError) as error:
            raise BadArgument("", f"the arguments cannot be read: {type(error).__name__}: {first_line(error)}") from error

    def _group_to_help(self, args: list[str]) -> Any:
        """The group of options that ``--model.policy.help`` asks for, None if the arguments ask for none."""
        # Options of a dataclass are a group of the class that takes it, and jsonargparse has no help of a group alone.
        asked = [arg for arg in args if arg.endswith(".help") and arg not in self._option_string_actions]
        return next((group for key, group in (self.groups or {}).items() if f"--{key}.help" in asked), None)

    def validate(self, namespace: Namespace, skip_unset: bool = True, *rest: Any, **options: Any) -> None:
        # A null is a value like any other: unless it is checked, it reaches constructors that take none. What is required and
        # missing is null too, and has a line of its own.
        missing = any(namespace.get(key) is None for key in iter_required_keys(self))
        super().validate(namespace, missing, *rest, **options)
        for key in [] if missing else self.groups or {}:
            if not isinstance(namespace.get(key, Namespace()), Namespace | dict):
                raise BadArgument(key, f"expected named options; got {namespace[key]!r}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.startswith("the following arguments are required"):  # named with the subcommand in front
            message, ex = re.sub(r"\b\w+\.(\w+)", r"\1", message), None
        raise _fault(ex or ValueError(message), self) from ex


def _fault(error: Exception, parser: argparse.ArgumentParser) -> BadArgument:
    """The error in one line."""
    reason, outer, keys = innermost(error)
    # A class's options have a parser of their own, whose `error` has made a line of the fault already.
    if isinstance(reason, BadArgument):
        return reason.within(keys)
    text = str(reason)
    unknown = next(filter(None, (re.search(pattern, text) for pattern in _UNKNOWN)), None)
    if unknown:
        names = unknown.groupdict()
        key = f"{names['group']}.{names['key']}" if names.get("group") else names["key"]
        return UnknownOption.among(key, _options(parser)).within(keys)
    if not keys:
        return BadArgument("", text)
    return BadArgument(".".join(keys), _value_fault(text, str(outer), parser, keys[0]))


def _value_fault(text: str, outer: str, parser: argparse.ArgumentParser, key: str) -> str:
    """The fault of a value of the option ``key``; ``outer`` lists all types that the value might have."""
    path = re.match(r"Expected a dot import path string: (\S+)|Problem with given class_path '(\S+)'", text)
    if path:
        return unknown_class(path.group(1) or path.group(2), _class_names(_typehint(parser, key)))
    if text.startswith("Expected a "):
        types = re.search(r"Subtypes: \[(.*)\]\n", outer)
        value = re.search(r"(?:Given|Got) value: (.*)", outer) or re.search(r"Got value: (.*)", text)
        wanted = types.group(1) if types else re.sub(r"^Expected an? |\. Got value.*", "", text)
        wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", wanted).replace("NoneType", "null")
        wanted = re.sub(r"Literal\[(.*?)\]", r"\1", wanted)
        given = value.group(1) if value else ""
        return f"expected {wanted}" + (f"; got {'null' if given == 'None' else repr(given)}" if value else "")
    # The name of the type tells the user nothing.
    text = re.sub(r"^Not of type \w+: |^Type typing\.Callable.* expects a function or a callable class: ", "", text)
    text = re.sub(r"\.\. Got value: .*", "", text)
    whole = re.search(r"Unable to load config (.*)", text)
    if whole:
        return f"expected named options; got {whole.group(1)}"
    return text


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Actions of a parser and of its subcommands' parsers."""
    subcommands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser, *(child for action in subcommands for child in action.choices.values())]
    return [action for each in parsers for action in each._actions]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Dotted names of all options."""
    return sorted({action.dest for action in _actions(parser) if action.dest not in _NO_OPTIONS} | set(SECTIONS))


def _typehint(parser: argparse.ArgumentParser, key: str) -> Any:
    """The type of an option, None if it has none."""
    # Only jsonargparse's actions have a type, argparse's own have none.
    return next((getattr(action, "_typehint", None) for action in _actions(parser) if action.dest == key), None)


def _class_names(hint: Any) -> list[str]:
    """Names of all classes that an option of this type may name."""
    if isinstance(hint, type):
        children: list[type] = hint.__subclasses__()
        below = [name for child in children for name in [child.__name__, *_class_names(child)]]
        return sorted({name for name in below or [hint.__name__] if not name.startswith("_")})
    # The arguments of a Callable come as a list.
    parts = hint if isinstance(hint, list) else get_args(hint)
    return sorted({name for part in parts if part is not type(None) for name in _class_names(part)})
