"""The house: imports point one way, files and functions stay small, and packages know only what they need.

Imports inside functions and for type checking count like all others.
"""

import ast
from functools import cache
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parent.parent
FOLDERS = {"lit_rl": "lit_rl", "callbacks": "lit_rl.callbacks", "datamodules": "lit_rl.datamodules"}
"""Folders of the product, and the packages that they install as."""
VOCABULARY = {
    "types",
    "fields",
    "rollouts",
    "support",
    "groups",
    "hooks",
    "files",
    "randomness",
    "options",
    "runtime",
    "ranks",
}
"""Files at the top of lit_rl: the words that all packages share."""
MAX_LEVELS = 9
NEEDS = {
    "kernels": {"root"},
    "objectives": {"root"},
    "tasks": {"root", "text"},
    "text": {"root"},
    "models": {"root", "text", "tasks", "kernels"},
    "datamodules": {"root", "text", "tasks", "models"},
}
"""Packages that may import only these."""
LIBRARIES = {"lightning", "transformers", "peft", "datasets", "torchmetrics", "bitsandbytes", "wandb"}
MAY_USE = {"text": {"transformers"}, "tasks": {"transformers"}, "kernels": {"transformers"}, "objectives": set()}
"""Libraries of that list that the lower packages may import."""


def module_of(path: Path) -> str:
    """Dotted name of a file, that of the package for its ``__init__``."""
    folder, *inner = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *inner]).removesuffix(".__init__")


@cache
def files() -> dict[str, Path]:
    """Files of the product by module."""
    return {module_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def package_of(module: str) -> str:
    """Package of a module; ``root`` for the files at the top. The entrance belongs to the command line."""
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "cli"
    return "root" if len(parts) == 1 or parts[1] in VOCABULARY else parts[1]


@cache
def imports(module: str) -> frozenset[str]:
    """Modules that a file imports: of the product by file, of libraries by name."""
    path = files()[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in files() else origin for name in inner}
    return frozenset(found - {module})


def product_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name in files()}


def package_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module in files():
        needed = {package_of(name) for name in product_imports(module)}
        graph.setdefault(package_of(module), set()).update(needed - {package_of(module)})
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, as a path that ends where it begins; empty without one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node]):
                if found := visit(other, [*path, node]):
                    return found
            done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Level of each node of a graph without circles: 1 if it needs nothing, else one above the highest that it needs."""

    @cache
    def level(node: str) -> int:
        return 1 + max((level(other) for other in graph[node]), default=0)

    return {node: level(node) for node in graph}


def functions() -> dict[str, int]:
    """Lines of every function, by module and name."""
    return {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, path in files().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


# --- imports ---------------------------------------------------------------------------------------------------------


def test_files_import_each_other_in_no_circle():
    found = circle({module: product_imports(module) for module in files()})
    assert not found, " -> ".join(found)


def test_packages_import_each_other_in_no_circle():
    found = circle(package_graph())
    assert not found, " -> ".join(found)


def test_packages_form_few_levels():
    found = levels(package_graph())
    assert max(found.values()) <= MAX_LEVELS, sorted(found.items(), key=lambda item: item[1])


def test_the_lower_packages_import_only_what_they_may():
    graph = package_graph()
    offenders = {name: sorted(graph[name] - allowed) for name, allowed in NEEDS.items() if graph[name] - allowed}
    assert not offenders


def test_the_lower_packages_keep_to_their_libraries():
    offenders = [
        f"{module} imports {name}"
        for module in files()
        if package_of(module) in MAY_USE
        for name in sorted({name.split(".")[0] for name in imports(module)} & LIBRARIES - MAY_USE[package_of(module)])
    ]
    assert not offenders


def test_callbacks_import_no_data_modules_and_one_algorithm_imports_another_only_as_its_base():
    callbacks = [module for module in files() if "lit_rl.datamodules" in " ".join(imports(module)) and "callbacks" in module]
    assert not callbacks
    algorithms = {f"lit_rl.algorithms.{name}" for name in ("sft", "grpo", "rpt", "ppo")}
    pairs = {(module, name) for module in algorithms for name in imports(module) & algorithms}
    assert pairs == {("lit_rl.algorithms.rpt", "lit_rl.algorithms.grpo")}


def test_nobody_imports_the_users_folders_by_their_bare_names():
    bare = {"callbacks", "datamodules", "configs"}
    offenders = [module for module in files() if {name.split(".")[0] for name in imports(module)} & bare]
    assert not offenders


def test_no_import_is_for_type_checking_alone():
    offenders = [
        module
        for module, path in files().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and "lit_rl" in ast.unparse(node)
    ]
    assert not offenders


# --- rooms -----------------------------------------------------------------------------------------------------------


def test_the_top_of_lit_rl_holds_the_shared_vocabulary_alone():
    found = {path.stem for path in (ROOT / "lit_rl").glob("*.py")}
    assert found == VOCABULARY | {"__init__", "__main__"}


def test_an_init_holds_re_exports_and_nothing_else():
    offenders = []
    for module, path in files().items():
        if path.name == "__init__.py":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                if not (docstring or names or isinstance(node, ast.ImportFrom)):
                    offenders.append(f"{module}: {ast.unparse(node).splitlines()[0]}")
    assert not offenders


def test_files_are_at_most_300_lines():
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in files().items()}
    assert not {module: size for module, size in sizes.items() if size > 300}


def test_functions_are_short():
    sizes = functions()
    assert not {name: size for name, size in sizes.items() if size > 60}
    assert quantiles(sizes.values(), n=10)[-1] <= 20
