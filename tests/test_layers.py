"""Imports point one way: what knows nothing of Lightning, of learning or of the user's folders stays so."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"types", "files", "randomness", "choices", "windows", "token_bytes"},
    {"tasks", "rollouts", "advantages", "losses", "kl", "aggregation", "fused_head", "logprobs", "plan"},
    {"rewards", "metrics", "curves", "step_figures", "schedule", "objective", "overlong", "prompts"},
    {
        "loading",
        "packing",
        "value",
        "attention",
        "compiling",
        "policy",
        "policy_check",
        "critic",
        "sampling",
        "reference",
        "strategy",
        "evaluation",
        "next_token",
        "tables",
        "token_entropy",
        "entropy_cache",
        "position_entropies",
    },
    {"hooks", "checks", "module", "stream", "supervised", "experience", "export", "policy_gradient", "group_relative"},
    {"algorithms"},
    {"arguments", "cli", "pipeline", "__main__"},
]
"""Parts of lit_rl; each imports from its own line and from those above."""
PURE = {
    *("types", "windows", "token_bytes", "rollouts", "advantages", "losses", "kl", "aggregation"),
    *("objective", "overlong", "logprobs", "plan", "tasks"),
}
HEAVY = {"lightning", "transformers"}
FILES = [path for folder in ("lit_rl", "callbacks", "datamodules") for path in sorted((ROOT / folder).rglob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imports(path: Path, later: bool = True) -> set[str]:
    """Dotted names that a file imports, relative ones made absolute; those for type checking don't count.

    ``later`` tells whether those inside functions do.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    package = path.relative_to(ROOT).parent.parts
    package = package if package[0] == "lit_rl" else ("lit_rl", *package)
    found: set[str] = set()
    for node in (inner for block in blocks for inner in (ast.walk(block) if later else [block])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" if origin == "lit_rl" else origin for alias in node.names}
    return found


def parts(path: Path) -> set[str]:
    """Parts of lit_rl that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("lit_rl.")}


def part(name: str) -> str:
    """Which part a file of lit_rl is."""
    return name.split("/")[1].removesuffix(".py")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("lit_rl/") and name != "lit_rl/__init__.py"])
def test_a_file_imports_from_its_own_layer_and_those_below(name):
    levels = [number for number, layer in enumerate(LAYERS) if part(name) in layer]
    assert len(levels) == 1, f"give {part(name)} its place in LAYERS"
    allowed = set().union(*LAYERS[: levels[0] + 1]) | ({"callbacks", "datamodules"} if part(name) == "cli" else set())
    assert parts(ROOT / name) <= allowed


@pytest.mark.parametrize("name", [name for name in NAMES if part(name) in PURE and name.startswith("lit_rl/")])
def test_a_pure_file_imports_neither_lightning_nor_transformers(name):
    assert not {module.split(".")[0] for module in imports(ROOT / name, later=False)} & HEAVY


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("datamodules/")])
def test_data_modules_need_only_types_and_tasks(name):
    assert parts(ROOT / name) <= {"types", "tasks", "files", "windows", "token_bytes", "datamodules"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("callbacks/")])
def test_callbacks_import_no_data_modules(name):
    assert "datamodules" not in parts(ROOT / name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("lit_rl/algorithms/") and "__init__" not in name])
def test_an_algorithm_imports_no_other(name):
    assert "algorithms" not in parts(ROOT / name)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_imports_the_users_folders_by_their_bare_names(name):
    assert not {module.split(".")[0] for module in imports(ROOT / name)} & {"callbacks", "datamodules"}
