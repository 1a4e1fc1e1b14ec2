"""Check of option names before anything heavy is imported: a misspelt option is answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

from lit_rl.cli.configs import TOO_DEEP, checked_shape, read_yaml
from lit_rl.cli.errors import SECTIONS, BadArgument, UnknownOption, unknown_class
from lit_rl.cli.option_names import Options, class_in, class_options, command_options, dotted_names, is_dataclass
from lit_rl.cli.renamed import CLASSES

OUR_PACKAGES = ("", "lit_rl", "lightning")
"""Packages whose classes are read from their source; a name without a package is one of theirs."""


class Classes:
    """Classes that arguments choose for options."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        """Class path by dotted key, the last one of a list."""
        self.all: list[tuple[str, str]] = []
        """Every dotted key and class path."""

    def choose(self, key: str, class_path: str) -> None:
        # The new class has options of its own: classes chosen inside the old one no longer hold.
        for inner in [inner for inner in self.now if inner.startswith(f"{key}.")]:
            del self.now[inner]
        self.now[key] = class_path
        self.all.append((key, class_path))

    def name(self, key: str, default: str) -> str:
        """Name of the class of an option; empty if it is a class of another package, which the source does not tell."""
        package, _, name = self.now.get(key, default).rpartition(".")
        return name if package.split(".")[0] in OUR_PACKAGES else ""


def check_options(args: list[str]) -> Classes:
    """Refuse the first option that is sure not to exist, and the first class that goes by an old name.

    Everything that the source does not tell for sure is left to the parser of `lit_rl.cli.lightning_cli`.

    Args:
        args: ``fit``, ``validate``, ``test``, ``predict`` or ``compare``, and its options, configs by path.

    Returns:
        The classes that the arguments choose.

    Raises:
        BadArgument: with the line that the parser would give.
    """
    classes = Classes()
    for key, value in _settings(args[1:]):
        # The parser appends to a list by `--key+`.
        key = key.replace("+", "")
        _check(key.split("."), value, command_options(args[0]), classes)
        # Inside an option of which the source tells nothing, too.
        if key.endswith(".class_path"):
            classes.all.append((key.removesuffix(".class_path").replace(".init_args", ""), str(value)))
    return classes


def _settings(args: list[str]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of flags and configs, in their order."""
    # A flag without value gets the next flag as its value, which names no class and does no harm.
    for arg, following in pairwise([*args, ""]):
        flag, equals, value = arg.partition("=")
        value = value if equals else following
        if flag in ("--config", "-c") and value:
            yield from _flat(read_yaml(value), "")
        elif flag.startswith("--"):
            yield from _flat(_parsed(value), flag[2:])


def _parsed(value: str) -> Any:
    """The value of a flag; a mapping or a list may be written on the command line too."""
    try:
        content = yaml.safe_load(value) if value.startswith(("{", "[")) else value
    # The parser has its own line for it; a ValueError is of a date that does not exist.
    except (yaml.YAMLError, ValueError):
        return value
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return checked_shape(content)


def _flat(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config, a class before its options; an element of a list has the key of the list."""
    if isinstance(content, dict):
        # The class must be known before its options are checked, wherever the file has it.
        for name in sorted(content, key=lambda name: name != "class_path"):
            yield from _flat(content[name], f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for item in content:
            yield from _flat(item, key)
    else:
        yield key, content


def _check(parts: list[str], value: Any, known: Options | None, classes: Classes) -> None:
    """Follow a key from option to option, and note the classes that are chosen on the way."""
    path: list[str] = []
    for place, part in enumerate(parts):
        # Flags leave this level out, configs write it.
        if path and part == "init_args":
            continue
        if path and part == "class_path":
            _choose(path, value, classes)
        # The class is not known, or the key is free or the parser's own: the source cannot tell.
        if known is None or part in ("class_path", "dict_kwargs", "help") or part.startswith("print_"):
            return
        if part not in known:
            rest = [name for name in parts[place:] if name not in SECTIONS]
            raise UnknownOption.among(".".join(rest), [*dotted_names(known), *SECTIONS]).within(path)
        base = class_in(known[part])
        if base is None:
            return
        path.append(part)
        if place == len(parts) - 1 and isinstance(value, str):
            _choose(path, value, classes)
        # Only a Trainer and a dataclass may go without a class of their own being named.
        default = base if base == "Trainer" or is_dataclass(base) else ""
        known = class_options(classes.name(".".join(path), default))


def _choose(path: list[str], value: Any, classes: Classes) -> None:
    """Note the class that fills an option."""
    key = ".".join(path)
    classes.choose(key, str(value))
    if classes.name(key, "") in CLASSES:
        raise BadArgument(key, unknown_class(str(value), []))
