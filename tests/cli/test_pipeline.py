"""Several runs in a row: references, skipping, resuming, reports."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.cli import pipeline
from lit_rl.cli.pipeline_file import load_stages

CHECKPOINTS = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}


class PowerCut(Callback):
    """Stops a run after its second step if the environment says so."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 2 and "POWER_CUT" in os.environ:
            raise ValueError("the power went out.")


def write_pipeline(folder: Path, **changes) -> str:
    """SFT, GRPO from its export, a test of that."""
    sft = tiny_config(folder, callbacks=("HFExport", "Improvement"))
    grpo = tiny_config(folder, "GRPO", callbacks=(CHECKPOINTS, "HFExport", "Improvement"), max_steps=4)
    grpo["trainer"]["callbacks"].append({"class_path": "test_pipeline.PowerCut"})
    grpo["model"]["init_args"] |= changes
    pretrained = {"model.policy.pretrained": "${stages.sft.export}", "model.policy.tokenizer": None}
    tested = {"model.policy.pretrained": "${stages.grpo.export}", "model.policy.tokenizer": None, "trainer.callbacks": []}
    stages = {
        "sft": {"run": "fit", "config": write_yaml(folder / "sft.yaml", sft)},
        "grpo": {"run": "fit", "config": [write_yaml(folder / "grpo.yaml", grpo)], "set": pretrained},
        "test": {"run": "test", "config": str(folder / "sft.yaml"), "set": tested},
    }
    return write_yaml(folder / "pipeline.yaml", {"folder": str(folder / "runs"), "stages": stages})


def state(root: Path) -> dict:
    """Report and stages that a start of the pipeline left."""
    stages = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/stage.json")}
    return {"report": json.loads((root / "report.json").read_text())["stages"], "stages": stages}


def in_this_process(args: list[str]) -> int:
    """A stage run without the ten seconds that a new process takes to import its libraries."""
    try:
        lit_rl(*args)
    except SystemExit as stop:
        return 1 if isinstance(stop.code, str) else stop.code or 0
    return 0


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A pipeline that is started four times: it fails, goes on, has nothing to do, and has changed."""
    folder = tmp_path_factory.mktemp("pipeline")
    root = folder / "runs"
    in_a_new_process = pipeline.run_process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_process", lambda args: runs.pop()(args))
        patch.setenv("POWER_CUT", "1")
        file = write_pipeline(folder)
        runs = [in_this_process, in_a_new_process]
        told = SimpleNamespace(root=root, message=refusal("pipeline", file), failed=state(root))
        patch.delenv("POWER_CUT")
        runs = [in_this_process, in_this_process]
        lit_rl("pipeline", file)
        told.finished = state(root)
        runs = []
        lit_rl("pipeline", file)
        told.again = state(root)
        runs = [in_this_process, in_this_process]
        lit_rl("pipeline", write_pipeline(folder, objective={"clip_high": 0.3}))
        told.changed = state(root)
        assert not runs
    return told


def test_a_failing_stage_stops_the_pipeline_with_one_line(story):
    assert story.message == "lit-rl: stage 'grpo' failed with exit status 1; mend it and start the pipeline again."
    assert not story.failed["stages"]["grpo"]["finished"]
    assert "test" not in story.failed["stages"]


def test_what_was_finished_before_a_failure_is_kept(story):
    assert story.failed["stages"]["sft"]["finished"]
    assert story.failed["report"]["sft"]["steps"] == 2
    assert story.finished["stages"]["sft"] == story.failed["stages"]["sft"], "it did not run a second time"


def test_an_interrupted_stage_goes_on_from_its_last_checkpoint(story):
    # One log with each step once: a second run from the beginning would have a log of its own.
    assert list(csv_steps(story.root / "grpo.1", "version_0")) == [0, 1, 2, 3]
    assert len(list((story.root / "grpo.1" / "logs").iterdir())) == 1
    assert story.finished["report"]["grpo"]["steps"] == 4


def csv_steps(stage: Path, version: str):
    """Steps of which a run logged the loss."""
    header, *rows = (stage / "logs" / version / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    for row in rows:
        metrics = dict(zip(names, row.split(","), strict=True))
        if metrics["loss"]:
            yield int(metrics["step"])


def test_a_finished_pipeline_has_nothing_to_do(story):
    assert story.again == story.finished


def test_a_changed_stage_runs_again_and_so_does_what_takes_from_it(story):
    before, after = story.finished["stages"], story.changed["stages"]
    assert after["sft"] == before["sft"]
    assert after["grpo"]["fingerprint"] != before["grpo"]["fingerprint"]
    assert after["test"]["command"] == before["test"]["command"]
    assert after["test"]["fingerprint"] != before["test"]["fingerprint"]


def test_the_run_before_a_change_is_set_aside(story):
    assert story.changed["stages"]["grpo.1"] == story.finished["stages"]["grpo"]
    assert (story.root / "grpo.1" / "export" / "config.json").is_file()


def test_a_stage_starts_from_the_export_of_an_earlier_one(story):
    config = yaml.safe_load((story.root / "grpo.1" / "logs" / "version_0" / "config.yaml").read_text())
    assert config["model"]["init_args"]["policy"]["pretrained"] == str(story.root / "sft" / "export")


def test_the_report_tells_before_and_after_with_intervals_steps_and_seconds(story):
    report = story.finished["report"]["grpo"]
    for metrics in (report["before"], report["after"]):
        assert 0 <= metrics["low"] <= metrics["value"] <= metrics["high"] <= 1
    assert (report["before"]["step"], report["after"]["step"], report["steps"]) == (0, 4, 4)
    assert report["seconds"] >= 0
    assert report["process_seconds"] > 0
    assert report["improvement"] == report["after"]["value"] - report["before"]["value"]


def test_the_report_of_a_test_holds_its_metrics(story):
    metrics = story.finished["report"]["test"]["metrics"]
    assert metrics["test/accuracy_low"] <= metrics["test/accuracy"] <= metrics["test/accuracy_high"]


def test_the_baseline_of_a_stage_is_where_the_earlier_one_ended(story):
    report = story.finished["report"]
    assert report["grpo"]["before"]["value"] == report["sft"]["after"]["value"]


def test_the_curve_is_a_picture(story):
    with Image.open(story.root / "curve.png") as picture:
        picture.verify()
        assert picture.format == "PNG"
        assert picture.width > picture.height  # a column for each of the two training stages


def test_checkpoints_of_a_pipeline_open_with_weights_only(story):
    saved = torch.load(next((story.root / "grpo").glob("**/last.ckpt")), weights_only=True)
    assert saved["global_step"] == 4


# --- ends of stages ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_stage(tmp_path):
    """A pipeline of one stage, and the stage's folder."""
    stages = {"sft": {"run": "fit", "config": write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path))}}
    return write_yaml(tmp_path / "p.yaml", {"folder": str(tmp_path / "runs"), "stages": stages}), tmp_path / "runs" / "sft"


def ends_with(status: int, folder: Path, **end):
    """A stage's process that leaves ``run.json``, if any of its content is given."""

    def run(args: list[str]) -> int:
        if end:
            (folder / "run.json").write_text(json.dumps(end))
        return status

    return run


def test_a_stage_is_finished_only_if_it_says_so_itself(one_stage, monkeypatch):
    file, folder = one_stage
    for end, reason in [({}, "it left no run.json"), ({"finished": False, "step": 1, "reason": "signal 15"}, "signal 15")]:
        monkeypatch.setattr(pipeline, "run_process", ends_with(0, folder, **end))
        assert refusal("pipeline", file) == (
            f"lit-rl: stage 'sft' ended before its last step ({reason}); start the pipeline again to go on."
        )
        assert not json.loads((folder / "stage.json").read_text())["finished"]


@pytest.mark.parametrize("status", [130, 143])
def test_an_interrupted_stage_ends_the_pipeline_with_its_status(one_stage, monkeypatch, capsys, status):
    file, folder = one_stage
    monkeypatch.setattr(pipeline, "run_process", ends_with(status, folder, finished=False, step=1, reason="signal"))
    with pytest.raises(SystemExit) as stop:
        lit_rl("pipeline", file)
    assert stop.value.code == status
    assert capsys.readouterr().err == f"lit-rl: interrupted; go on with: lit-rl pipeline {file}\n"
    assert not json.loads((folder / "stage.json").read_text())["finished"]


STAGE = """
import signal, sys, time
def stop(signum, frame):
    time.sleep(0.5)  # a checkpoint is written
    open("stopped", "w").write(str(signum))
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, stop)
open("ready", "w")
time.sleep(60)
"""
DRIVER = "from lit_rl.cli.stage_process import run_process; import sys; sys.exit(run_process([]))"


def test_a_signal_to_the_pipeline_reaches_the_stage_which_is_waited_for(tmp_path):
    # A package of this name stands in for the command line of the stage.
    (tmp_path / "lit_rl").mkdir()
    (tmp_path / "lit_rl" / "__main__.py").write_text(STAGE)
    root = str(Path(pipeline.__file__).parents[2])
    driver = f"import sys; sys.path.insert(0, {root!r}); {DRIVER}"
    process = subprocess.Popen([sys.executable, "-P", "-c", driver], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert (tmp_path / "stopped").read_text() == "15"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_mistake_in_a_later_stage_shows_before_the_first_one_runs(tmp_path):
    config = write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path))
    for stage, message in [
        (
            {"set": {"model.policy.pretrained": "${stages.nope.export}"}},
            "stage 'second': ${stages.nope.export}: no earlier stage has it; known are stages.first.folder, ",
        ),
        ({"set": {"model.policy.pretrained": "${stages.first.exprt}"}}, "${stages.first.exprt}: no earlier stage has it"),
        ({"set": {"trainer.max_stepz": 3}}, "stage 'second': unknown option 'trainer.max_stepz'. Did you mean"),
        ({"set": {"trainer.max_steps": "x"}}, "stage 'second': trainer.max_steps: expected int; got 'x'"),
        ({"config": "nope"}, "stage 'second': no config 'nope'"),
        ({"run": "train"}, "stage 'second' runs 'train'; write one of fit, validate, test, predict, compare, export."),
        ({"overrides": {}}, "stage 'second' has overrides; a stage holds `run`, `config` and `set`."),
    ]:
        stages = {"first": {"run": "fit", "config": config}, "second": {"run": "fit", "config": config, **stage}}
        file = write_yaml(tmp_path / "pipeline.yaml", {"folder": str(tmp_path / "runs"), "stages": stages})
        assert message in refusal("pipeline", file)
        assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_a_pipeline_gets_one_line(tmp_path):
    path = tmp_path / "pipeline.yaml"
    for text in ("just a text", "stages: [a, b]", "stages: {}", "stages: {a: b}", "stages: {a: null}", "stages: {a: [run]}"):
        path.write_text(text)
        assert "pipeline.yaml" in refusal("pipeline", path), text


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({None: {}}, "a stage is called None; write letters, digits, _ and -, and a number in quotes."),
        ({True: {}}, "a stage is called True; write letters"),
        ({1: {}}, "a stage is called 1; write letters"),
        ({"../up": {}}, "a stage is called '../up'; write letters"),
        ({"a/b": {}}, "a stage is called 'a/b'; write letters"),
        ({"[bold]": {}}, "a stage is called '[bold]'; write letters"),
        ({"a\x1b[31m": {}}, r"a stage is called 'a\x1b[31m'; write letters"),
        ({"a": {"run": ["fit"]}}, "stage 'a' runs ['fit']; write one of fit, validate, test, predict, compare, export."),
        ({"a": {"run": "fit", "set": [1]}}, "stage 'a' has set [1]; write a mapping such as {trainer.max_steps: 100}."),
        ({"a": {"run": "fit", "set": {1: 2}}}, "stage 'a' sets 1; write the dotted name of an option."),
        ({"a": {"run": "fit", "set": {"x": date(2026, 1, 2)}}}, "stage 'a' sets x to datetime.date(2026, 1, 2); write a text"),
        ({"a": {"run": "fit", "set": {"trainer.default_root_dir": "x"}}}, "stage 'a' sets trainer.default_root_dir, which is"),
        ({"a": {"run": "fit", "config": {"x": 1}}}, "stage 'a' has config {'x': 1}; write the name of a config, or a list"),
    ],
)
def test_a_stage_of_a_wrong_shape_gets_one_line(tmp_path, stages, message):
    file = write_yaml(tmp_path / "pipeline.yaml", {"stages": stages})
    assert message in refusal("pipeline", file)


def test_top_entries_of_a_wrong_shape_get_one_line(tmp_path):
    stages = {"a": {"run": "fit", "config": "sft_arithmetic"}}
    for entries, message in [
        ({"folder": [1]}, "`folder` is [1]; write a text."),
        ({"fodler": "x"}, "pipeline.yaml has fodler;"),
    ]:
        file = write_yaml(tmp_path / "pipeline.yaml", {"stages": stages, **entries})
        assert message in refusal("pipeline", file)


def test_a_broken_pipeline_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text("stages:\n  a: [1, 2\nb: c\n")
    assert "pipeline.yaml, line 3: this is not YAML" in refusal("pipeline", path)


def test_the_folder_of_the_command_line_goes_before_that_of_the_file(tmp_path):
    file = write_yaml(tmp_path / "p.yaml", {"folder": "elsewhere", "stages": {"a": {"run": "fit", "config": "sft_arithmetic"}}})
    root, (stage,) = load_stages(file, tmp_path / "here")
    assert (root, stage.folder) == (tmp_path / "here", tmp_path / "here" / "a")
