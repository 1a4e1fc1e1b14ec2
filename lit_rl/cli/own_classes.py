"""Classes that a config or a flag names by their import path: imported early, and never a function."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterable
from typing import Any

from lit_rl.cli.errors import BadArgument
from lit_rl.options import first_line


def check_class(key: str, class_path: str) -> None:
    """Refuse an import path whose module fails while it is imported, and one that names a function.

    The parser calls a function that stands for a class: ``class_path: os.system`` would run a command. A path that leads
    nowhere is left to the parser, which knows the classes that fit.

    Raises:
        BadArgument: with file and line of the failure.
    """
    module, _, name = class_path.rpartition(".")
    if not all(part.isidentifier() for part in class_path.split(".")) or not module:
        return
    found = getattr(_imported(key, module), name, None)
    if found is not None and not inspect.isclass(found):
        raise BadArgument(key, f"{class_path!r} is not a class; write the import path of a class.")


def _imported(key: str, module: str) -> Any:
    """The module; None if it does not exist.

    Raises:
        BadArgument: if it exists and its import fails.
    """
    try:
        return importlib.import_module(module)
    # Whatever the module does, it is the user's own.
    except (Exception, SystemExit) as error:
        # The path leads nowhere: neither the module nor a package around it is there.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise BadArgument(key, f"{_place(error)}: {type(error).__name__}: {first_line(error)}") from error


def _place(error: BaseException) -> str:
    """File and line of an error of a module's import."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    # The first file after this one is the module itself.
    frame = next((each for each in frames if each.filename != __file__), frames[-1])
    return f"{frame.filename}, line {frame.lineno}"


def check_config(config: Any, key: str = "") -> None:
    """Refuse functions that stand for classes, wherever a parsed config has them.

    Raises:
        BadArgument: for the first one.
    """
    if isinstance(config, list):
        for item in config:
            check_config(item, key)
    if not isinstance(config, dict):
        return
    if isinstance(config.get("class_path"), str):
        check_class(key, config["class_path"])
    for name, value in config.items():
        check_config(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))


def check_chosen(chosen: Iterable[tuple[str, str]]) -> None:
    """`check_class` of every class of another package.

    Args:
        chosen: dotted keys and class paths.
    """
    for key, class_path in chosen:
        if class_path.split(".")[0] not in ("lit_rl", "lightning"):
            check_class(key, class_path)
