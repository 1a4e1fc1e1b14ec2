"""Pipelines with comparisons and merged exports: kills, reports, mistakes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_spec
from exported import export
from test_pipeline import in_this_process
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.cli import pipeline
from lit_rl.cli.comparison import CompareCLI

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.3}}


def write_pipeline(folder: Path, base: str) -> str:
    """SFT of an adapter, which is merged; base, adapter and merged model are compared."""
    config = tiny_config(folder, callbacks=("HFExport",))
    judge = {"max_new_tokens": 4, "correct": {"class_path": "exported.EvenSum"}}
    model = {"policy": {"pretrained": base, "lora": {"r": 2}}, "optimizer": ADAMW}
    config["model"]["init_args"] = model | {"evaluation": {"class_path": "Evaluation", "init_args": judge}}
    sft = write_yaml(folder / "sft.yaml", config)
    policies = {"base": base, "sft": "${stages.sft.export}", "merged": "${stages.merged.export}"}
    stages = {
        "sft": {"run": "fit", "config": sft},
        "merged": {"run": "export", "source": "${stages.sft.export}", "set": {"dtype": "float32"}},
        "dev": {"run": "compare", "policies": policies, "config": sft, "set": {"split": "val", "limit": 6}},
    }
    return write_yaml(folder / "pipeline.yaml", {"folder": str(folder / "runs"), "stages": stages})


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A pipeline that is killed while its second policy answers, and started twice more."""
    folder = tmp_path_factory.mktemp("pipeline")
    file = write_pipeline(folder, export(folder / "base", tiny_spec(), 1))
    evaluate, asked = CompareCLI._evaluate, []

    def killed(self, config):
        asked.append(Path(config.model.init_args.policy.pretrained).parent.name)
        if len(asked) == 2:
            raise SystemExit(143)
        return evaluate(self, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_process", in_this_process)
        patch.setattr(CompareCLI, "_evaluate", killed)
        with pytest.raises(SystemExit) as stop:
            lit_rl("pipeline", file)
        before = list(asked)
        lit_rl("pipeline", file)
        after, report = asked[2:], json.loads((folder / "runs" / "report.json").read_text())
        patch.setattr(pipeline, "run_process", None)  # nothing is left to run
        lit_rl("pipeline", file)
    again = json.loads((folder / "runs" / "report.json").read_text())
    root = folder / "runs"
    return SimpleNamespace(root=root, status=stop.value.code, before=before, after=after, report=report, again=again)


def test_a_killed_comparison_goes_on_after_its_last_policy(story):
    assert story.status == 143
    assert story.before == [story.root.parent.name, "sft"]
    assert story.after == ["sft", "merged"]
    assert not (story.root / "dev.1").exists()


def test_a_finished_pipeline_stays_as_it_is(story):
    assert story.again == story.report


def test_a_merged_adapter_answers_as_the_adapter(story):
    texts = {}
    for name in ("base", "sft", "merged"):
        rows = json.loads((story.root / "dev" / "policies" / f"{name}.json").read_text())["results"]
        texts[name] = [row["completion"] for row in rows]
    assert texts["sft"] == texts["merged"] != texts["base"]


def test_the_comparison_stands_in_the_report_without_its_texts(story):
    report = story.report["stages"]["dev"]
    assert report["run"] == "compare"
    assert report["questions"] == 6
    assert report["process_seconds"] > 0
    assert set(report["policies"]) == {"base", "sft", "merged"}
    assert report["pairs"][-1]["difference"]["mean"] == 0.0
    assert "changed" not in report
    assert "changed" in json.loads((story.root / "dev" / "comparison.json").read_text())


def test_the_table_of_the_pipeline_holds_the_comparison(story):
    table = (story.root / "table.md").read_text()
    assert table.startswith("## dev\n\n| metric | base | sft | merged |\n")
    assert (story.root / "dev" / "comparison.md").read_text() in table


def test_a_predict_stage_goes_on_in_its_folder(tmp_path, monkeypatch):
    stages = {"rollouts": {"run": "predict", "config": write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path))}}
    use = {"data.path": "${stages.rollouts.folder}"}
    stages["next"] = {"run": "compare", "policies": {"a": "x", "b": "y"}, "config": "sft_gsm8k", "set": use}
    file = write_yaml(tmp_path / "p.yaml", {"folder": str(tmp_path / "runs"), "stages": stages})
    recorded, commands = tmp_path / "runs" / "rollouts" / "rollouts.jsonl", []

    def killed(args: list[str]) -> int:
        commands.append(args)
        with recorded.open("a") as lines:
            lines.write("{}\n")
        return 143

    monkeypatch.setattr(pipeline, "run_process", killed)
    for starts in (1, 2):
        with pytest.raises(SystemExit):
            lit_rl("pipeline", file)
        assert recorded.read_text() == "{}\n" * starts
    assert commands[0] == commands[1]
    assert commands[0][0] == "predict"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"run": "compare", "config": "sft_gsm8k"}, "has policies None; write a mapping such as {sft: ${stages.sft.export}}."),
        ({"run": "compare", "policies": ["x"]}, "has policies ['x']; write a mapping"),
        ({"run": "compare", "policies": {"a": 1}}, "has policies {'a': 1}; write a mapping"),
        ({"run": "compare", "policies": {"a": "x"}}, "stage 's': write lit-rl compare and two policies or more"),
        ({"run": "compare", "policies": {"a/b": "x", "c": "y"}}, "stage 's': compare: 'a/b=x' is not a policy"),
        (
            {"run": "compare", "policies": {"a": "${stages.sft.export}", "b": "y"}},
            "stage 's': ${stages.sft.export}: no earlier stage has it; known are none.",
        ),
        ({"run": "compare", "source": "x"}, "has source; a stage holds `run`, `policies`, `config` and `set`."),
        ({"run": "export"}, "has source None; write a folder, such as ${stages.sft.export}."),
        ({"run": "export", "source": "x", "config": "y"}, "has config; a stage holds `run`, `source` and `set`."),
        ({"run": "export", "source": "x", "set": {"dtype": "int8"}}, "stage 's': --dtype is 'int8'; write one of bfloat16,"),
        ({"run": "export", "source": "x", "set": {"dtyp": "int8"}}, "stage 's': unknown option '--dtyp'."),
        ({"run": "fit", "policies": {}}, "has policies; a stage holds `run`, `config` and `set`."),
    ],
)
def test_a_wrong_stage_gets_one_line(tmp_path, stage, message):
    file = write_yaml(tmp_path / "p.yaml", {"folder": str(tmp_path / "runs"), "stages": {"s": stage}})
    assert message in refusal("pipeline", file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splt": "val"}, "stage 's': unknown option 'splt'. Did you mean 'split'?"),
        ({"split": "dev"}, "stage 's': split: expected 'val', 'test'; got 'dev'"),
        ({"folder": "elsewhere"}, "sets folder, which is the pipeline's own"),
    ],
)
def test_a_wrong_option_of_a_comparison_shows_before_the_first_stage_runs(tmp_path, options, message):
    stage = {"run": "compare", "policies": {"a": "x", "b": "y"}, "config": "sft_gsm8k", "set": options}
    file = write_yaml(tmp_path / "p.yaml", {"folder": str(tmp_path / "runs"), "stages": {"s": stage}})
    assert message in refusal("pipeline", file)
    assert not (tmp_path / "runs").exists()
