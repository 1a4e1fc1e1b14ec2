"""Every file in configs/: it says how it is run, and what it says can be run."""

import shlex
import shutil
from pathlib import Path

import lit_rl.configs
from lit_rl.cli.configs import find_config, read_yaml, resolve_configs
from lit_rl.cli.errors import explain
from lit_rl.cli.option_check import check_options
from lit_rl.cli.pipeline_file import load_stages
from lit_rl.cli.stage_check import quick_check

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


def wrong(commands: dict) -> dict:
    """Faults of command lines, by the key of the command."""
    found = {}
    for name, command in commands.items():
        try:
            quick_check(resolve_configs(command))()
        except ValueError as error:
            found[name] = explain(error)
    return found


def test_there_are_configs_of_each_kind():
    assert {"sft_arithmetic", "grpo_arithmetic"} <= set(RUNS)
    assert {"logger/wandb", "logger/tensorboard", "logger/mlflow", "trainer/ddp", "trainer/fsdp2", "trainer/bf16"} <= set(
        OVERLAYS
    )


def test_the_first_line_is_a_command_that_uses_the_file():
    for name in FILES:
        assert name in first_command(name), name
        assert (first_command(name)[0] == "pipeline") == (name in PIPELINES), name


def test_a_config_fits_on_a_page():
    for name in FILES:
        assert len(Path(find_config(name)).read_text(encoding="utf-8").splitlines()) <= LONGEST, name


def test_every_run_of_its_own_and_every_stage_of_a_pipeline_has_a_right_command():
    commands, in_pipelines = {}, set()
    for pipeline in PIPELINES:
        _, stages = load_stages(pipeline)
        for number, stage in enumerate(stages):
            # Stages that differ in seeds and folders alone are the same to the parser.
            commands[stage.run, *stage.configs, *stage.overrides] = stage.command(stages[:number])
            in_pipelines |= set(stage.configs)
    commands |= {name: first_command(name) for name in RUNS if name not in in_pipelines}
    assert wrong(commands) == {}


def test_every_overlay_goes_on_a_run_of_every_kind():
    overlays = [text for overlay in OVERLAYS for text in ("--config", overlay)]
    assert wrong({run: ["fit", "--config", run, *overlays] for run in OF_EACH_KIND}) == {}


def test_every_preset_goes_on_grpo_and_on_rpt():
    presets = [text for preset in PRESETS for text in ("--config", preset)]
    assert wrong({run: ["fit", "--config", run, *presets] for run in ("grpo_arithmetic", "rpt_omni_math")}) == {}


def test_the_first_lines_of_all_configs_hold_no_unknown_option():
    for name in RUNS + OVERLAYS + PRESETS:
        check_options(resolve_configs(first_command(name)))


def test_a_config_is_found_by_path_too(tmp_path):
    copy = shutil.copy(find_config("sft_arithmetic"), tmp_path / "mine.yaml")
    assert find_config(str(copy)) == str(copy)
