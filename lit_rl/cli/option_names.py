"""Names of options, read from the source without importing it.

Known are the classes of this package, callbacks and loggers of Lightning, and the Trainer.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Options = dict[str, ast.expr | None]
"""Annotation of each option by the option's name."""

CLASSES = {"model": "PolicyModule", "data": "PromptDataModule", "trainer": "Trainer"}
"""Base class of each option of a command that holds a class."""
COMPARISON = ("split", "limit", "folder")
"""Options of ``compare`` alone."""
DATA_ARGUMENTS = ("self", "model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule")
"""Arguments of the Trainer's methods that are not options."""


@cache
def command_options(command: str) -> Options:
    """Options of a command; of ``fit``, ``validate``, ``test`` and ``predict`` with the arguments of the Trainer's method."""
    options: Options = {"config": None, "print_config": None, "seed_everything": None}
    options.update({name: ast.Name(base) for name, base in CLASSES.items()})
    if command == "compare":
        return options | dict.fromkeys(COMPARISON)
    trainer = _definition("Trainer")
    method = _method(trainer, command) if trainer else None
    arguments = method.args.args if method else []
    options.update({each.arg: each.annotation for each in arguments if each.arg not in DATA_ARGUMENTS})
    return options


@cache
def class_options(name: str) -> Options | None:
    """Options of a class; None if the source does not tell all of them."""
    definition = _definition(name)
    if definition is None:
        return None
    bases = [re.sub(r"\[.*", "", ast.unparse(base)).split(".")[-1] for base in definition.bases]
    bases = [base for base in bases if base not in ("ABC", "Generic")]
    inherited: Options | None = class_options(bases[0]) if len(bases) == 1 else None if bases else {}
    if is_dataclass(name):
        fields: Options = {
            ast.unparse(node.target): node.annotation
            for node in definition.body
            # A field that no constructor takes is not an option.
            if isinstance(node, ast.AnnAssign) and "init=False" not in ast.unparse(node)
        }
        return None if inherited is None else inherited | fields
    init = _method(definition, "__init__")
    if init is None:
        return inherited
    own: Options = {each.arg: each.annotation for each in [*init.args.args[1:], *init.args.kwonlyargs]}
    if init.args.kwarg is None:
        return own
    call = _base_call(init, init.args.kwarg.arg)
    # The keyword arguments go somewhere that the source does not tell.
    if call is None or inherited is None:
        return None
    # Positional arguments take the first names: dicts keep the order of the signature.
    given = {*list(inherited)[: len(call.args)], *(each.arg for each in call.keywords)}
    return own | {name: annotation for name, annotation in inherited.items() if name not in own and name not in given}


def is_dataclass(name: str) -> bool:
    """Whether a class is a dataclass."""
    definition = _definition(name)
    return definition is not None and any("dataclass" in ast.unparse(each) for each in definition.decorator_list)


def class_in(annotation: ast.expr | None) -> str | None:
    """The one class that an annotation names beside null and lists, if the class is known."""
    names = {node.id for node in ast.walk(annotation or ast.Constant(None)) if isinstance(node, ast.Name)}
    found = [name for name in names if name in class_files()]
    # Two classes could both be meant, and keys of a dict are the user's own.
    return found[0] if len(found) == 1 and not names & {"dict", "Mapping", "Callable"} else None


def dotted_names(options: Options) -> list[str]:
    """Names of options, and of options inside one that is a Trainer or a dataclass and nothing else: the parser's own list."""
    names = list(options)
    for option, annotation in options.items():
        alone = annotation.id if isinstance(annotation, ast.Name) else ""
        if alone == "Trainer" or is_dataclass(alone):
            names += [f"{option}.{name}" for name in dotted_names(class_options(alone) or {})]
    return names


@cache
def class_files() -> dict[str, Path]:
    """File of each class by the class's name; a name that two files define is left out."""
    lightning = _folder("lightning") / "pytorch"
    folders = [_folder(name) for name in ("lit_rl", "lit_rl.callbacks", "lit_rl.datamodules")]
    folders += [lightning / name for name in ("callbacks", "loggers", "trainer")]
    found: dict[str, list[Path]] = {}
    for path in {path for folder in folders for path in folder.rglob("*.py")}:  # installed, two folders lie in the first
        # By regex: to parse all files takes much longer, and only a few are needed.
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(path)
    # Options of the wrong one of two classes would refuse a right option.
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _folder(package: str) -> Path:
    spec = find_spec(package)  # imports the parent package, which is empty
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed.")
    return Path(spec.submodule_search_locations[0])


@cache
def _definitions(path: Path) -> dict[str, ast.ClassDef]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}


def _definition(name: str) -> ast.ClassDef | None:
    path = class_files().get(name)
    return _definitions(path)[name] if path else None


def _method(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _base_call(init: ast.FunctionDef, options: str) -> ast.Call | None:
    """The call of the base's constructor that hands ``**options`` on."""
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"]
    handed_on = (None, options)
    return next((call for call in calls if handed_on in [(each.arg, ast.unparse(each.value)) for each in call.keywords]), None)
