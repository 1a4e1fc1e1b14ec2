"""The wheel: what a user installs, outside of any checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but the installed wheel, first on the path of a Python process elsewhere."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("lit_rl", "callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source), str(source)], check=True)
    wheel = next(source.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


def python(installed: Path, *args: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_wheel_puts_no_package_of_a_common_name_beside_lit_rl(installed, tmp_path):
    assert sorted(path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")) == ["bin", "lit_rl"]
    assert python(installed, "-c", "import callbacks", folder=tmp_path).returncode != 0


def test_wheel_is_typed(installed):
    assert (installed / "lit_rl" / "py.typed").is_file()


def test_installed_command_runs_a_config_by_name_from_the_installed_files(installed, tmp_path):
    report = "import sys, lit_rl.cli.main as m; m.main(); import lit_rl.callbacks as c; print(c.__file__)"
    args = ["fit", "--config", "sft_arithmetic", "--trainer.fast_dev_run", "true"]
    run = python(installed, "-c", report, *args, folder=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines()[-1] == str(installed / "lit_rl" / "callbacks" / "__init__.py")
