"""Every file in configs/: it says how it is run, and what it says can be run."""

import shlex
import shutil
from pathlib import Path

import pytest

import lit_rl.configs
from lit_rl.cli.main import check_arguments
from lit_rl.cli.pipeline import load_stages
from lit_rl.cli.configs import find_config, read_yaml

FOLDER = Path(lit_rl.configs.__path__[0])
FILES = sorted(str(path.relative_to(FOLDER))[: -len(".yaml")] for path in FOLDER.rglob("*.yaml"))
PIPELINES = [name for name in FILES if "stages" in read_yaml(find_config(name))]
PRESETS = [name for name in FILES if name.startswith("objective/")]
OVERLAYS = [name for name in FILES if "/" in name and name not in PRESETS]
RUNS = [name for name in FILES if name not in PIPELINES + OVERLAYS + PRESETS]
OF_EACH_KIND = ["sft_arithmetic", "grpo_arithmetic", "rpt_omni_math", "ppo_arithmetic"]
"""A run of each algorithm; others of its kind have the same keys."""
LONGEST = 60  # lines


def first_command(name: str) -> list[str]:
    """The command in the first line of a config."""
    line = Path(find_config(name)).read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("# lit-rl "), f"{name}: the first line is a comment with the command"
    return shlex.split(line.removeprefix("# lit-rl "))


def test_there_are_configs_of_each_kind():
    assert {"sft_arithmetic", "grpo_arithmetic"} <= set(RUNS)
    assert {"logger/wandb", "logger/tensorboard", "logger/mlflow", "trainer/ddp", "trainer/fsdp2", "trainer/bf16"} <= set(
        OVERLAYS
    )


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_is_a_command_that_uses_the_file(name):
    assert name in first_command(name)


@pytest.mark.parametrize("name", FILES)
def test_a_config_fits_on_a_page(name):
    assert len(Path(find_config(name)).read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("name", RUNS + OVERLAYS + PRESETS)
def test_the_command_of_a_config_is_right(name):
    check_arguments(first_command(name))


@pytest.mark.parametrize("run", OF_EACH_KIND)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_goes_on_a_run_of_every_kind(run, overlay):
    check_arguments(["fit", "--config", run, "--config", overlay])


@pytest.mark.parametrize("run", ["grpo_arithmetic", "rpt_omni_math"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_on_grpo_and_on_rpt(run, preset):
    check_arguments(["fit", "--config", run, "--config", preset])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_stages_of_a_pipeline_are_right(name):
    _, stages = load_stages(name)
    for number, stage in enumerate(stages):
        check_arguments(stage.command(stages[:number]))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_says_how_it_is_run(name):
    assert first_command(name)[0] == "pipeline"


def test_a_config_is_found_by_path_too(tmp_path):
    copy = shutil.copy(find_config("sft_arithmetic"), tmp_path / "mine.yaml")
    assert find_config(str(copy)) == str(copy)
