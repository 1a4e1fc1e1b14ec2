"""Help of an option inside a class: ``lit-rl fit --model.sampler.help``."""

from __future__ import annotations

from itertools import pairwise

import lit_rl.algorithms
import lit_rl.datamodules
from lit_rl.cli.option_names import class_in, class_options, is_dataclass

CANDIDATES = {"model": lit_rl.algorithms.__all__, "data": lit_rl.datamodules.__all__}


def expand_help(args: list[str], classes: dict[str, str]) -> list[str]:
    """Arguments that ask for the help of an option inside a class, as the parser takes them.

    The parser explains an option inside a class only after the class: ``--model.help GRPO --model.sampler.help``. The class is
    the one that the arguments choose, otherwise the first one that has the option.

    Args:
        args: the command and its arguments.
        classes: class chosen for each dotted key.

    Returns:
        ``args`` if they ask for no such help.
    """
    for place, arg in enumerate(args):
        flag, equals, name = arg.partition("=")
        keys = flag.removeprefix("--").split(".")
        if keys[0] not in CANDIDATES or keys[-1] != "help" or len(keys) < 3:
            continue
        asked = [name] if equals else [each for each in args[place + 1 : place + 2] if not each.startswith("-")]
        # Whoever knows the parser's way writes it so.
        explained = {key[2 : -len(".help")]: value for key, value in pairwise(args) if key == f"--{keys[0]}.help"}
        return [args[0], *_chain(keys[:-1], classes | explained), f"--{'.'.join(keys)}", *asked]
    return args


def _chain(path: list[str], given: dict[str, str]) -> list[str]:
    """Help flags of the classes around an option, from the outermost."""
    top = path[0]
    having = [name for name in CANDIDATES[top] if path[1] in (class_options(name) or {})]
    chosen = given.get(top) or [*having, *CANDIDATES[top]][0]
    flags = [f"--{top}.help", chosen]
    for place in range(1, len(path) - 1):
        options = class_options(chosen.rpartition(".")[2]) or {}
        key, base = ".".join(path[: place + 1]), class_in(options.get(path[place]))
        chosen = given.get(key) or base or ""
        # Options of a dataclass are options of the class around it, unless it may be null.
        if chosen and not is_dataclass(chosen):
            flags += [f"--{key}.help", chosen]
    return flags
