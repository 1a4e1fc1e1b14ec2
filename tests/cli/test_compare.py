"""``lit-rl compare``: policies on the same questions, one in memory at a time, kept answers, refusals."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import exported
import pytest
from conftest import tiny_spec
from exported import export
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.algorithms import module
from lit_rl.cli.comparison import CompareCLI
from lit_rl.evaluation.questions import QuestionResult
from lit_rl.models import LoRASpec, PolicySpec
from lit_rl.models.policy import Policy
from lit_rl.reports.curves import read_curve


def config_of(folder: Path, **evaluation) -> str:
    config = tiny_config(folder / "never")
    judge = {"max_new_tokens": 4, "correct": {"class_path": "exported.EvenSum"}, **evaluation}
    config["model"]["init_args"]["evaluation"]["init_args"] = judge
    config["trainer"]["callbacks"] = ["HFExport"]
    return write_yaml(folder / "run.yaml", config)


def answers(folder: Path) -> dict[str, list[dict]]:
    return {path.stem: json.loads(path.read_text())["results"] for path in (folder / "policies").glob("*.json")}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Folders of a model, of another one, and of an adapter on the first."""
    folder = tmp_path_factory.mktemp("policies")
    base = export(folder / "base", tiny_spec(), 1)
    adapter = PolicySpec(pretrained=base, lora=LoRASpec(r=2))
    return SimpleNamespace(
        base=base, other=export(folder / "other", tiny_spec(), 2), adapter=export(folder / "adapter", adapter, 3)
    )


@pytest.fixture(scope="module")
def compared(policies, tmp_path_factory):
    """A comparison of four policies, two of them equal, and the policies that were in memory when the next was built."""
    folder = tmp_path_factory.mktemp("compared")
    config = config_of(folder, samples=2)
    alive, others = weakref.WeakSet(), []

    def counted(*args):
        others.append(len(alive))
        policy = Policy(*args)
        alive.add(policy)
        return policy

    named = [f"base={policies.base}", f"twin={policies.base}", f"other={policies.other}", f"adapter={policies.adapter}"]
    command = ["compare", *named, "--config", config, "--split", "val", "--folder", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Policy", counted)
        lit_rl(*command)
    report = json.loads((folder / "out" / "comparison.json").read_text())
    return SimpleNamespace(folder=folder / "out", config=config, command=command, report=report, others=others)


def pair(report: dict, first: str, second: str, metric: str = "accuracy") -> dict:
    return next(each for each in report["pairs"] if (each["first"], each["second"], each["metric"]) == (first, second, metric))


def test_equal_policies_do_not_differ(compared):
    for metric in ("accuracy", "maj_at_2", "pass_at_2"):
        twins = pair(compared.report, "base", "twin", metric)
        assert (twins["difference"]["mean"], twins["p_value"], twins["gained"], twins["lost"]) == (0.0, 1.0, [], [])


def test_all_policies_answer_the_same_questions(compared):
    asked = [[(row["number"], row["question"]) for row in rows] for rows in answers(compared.folder).values()]
    assert len(asked) == 4
    assert all(each == asked[0] for each in asked)
    assert len(asked[0]) == compared.report["questions"] == 8


def test_an_adapter_answers_with_its_base_and_itself(compared):
    texts = {name: [row["completion"] for row in rows] for name, rows in answers(compared.folder).items()}
    assert texts["base"] == texts["twin"]
    assert len({tuple(each) for each in texts.values()}) == 3


def test_policies_are_in_memory_one_at_a_time(compared):
    assert compared.others == [0, 0, 0, 0]


def test_a_policy_has_the_accuracy_that_validate_logs(compared, policies, tmp_path):
    options = ["--model.policy.pretrained", policies.other, "--model.policy.tokenizer", "null", "--trainer.callbacks", "[]"]
    lit_rl("validate", "--config", compared.config, *options, "--trainer.default_root_dir", tmp_path)
    logged = {name: points[-1][1] for name, points in read_curve(tmp_path).items()}
    for name, value in compared.report["policies"]["other"].items():
        if name not in ("answered", "tokens"):
            assert [logged[f"val/{name}{side}"] for side in ("", "_low", "_high")] == pytest.approx(list(value.values())), name


def test_changed_questions_are_told_with_their_texts(compared):
    moved = pair(compared.report, "base", "other")
    numbers = [each["number"] for each in compared.report["changed"]]
    assert {*moved["gained"], *moved["lost"]} <= set(numbers)
    assert moved["gained"] or moved["lost"]
    changed = compared.report["changed"][0]
    row = next(row for row in answers(compared.folder)["other"] if row["number"] == changed["number"])
    assert changed["answers"]["other"]["completion"] == row["completion"]


def test_the_table_is_written_too(compared):
    assert (compared.folder / "comparison.md").read_text().startswith("| metric | base | twin | other | adapter |\n")


def test_finished_answers_are_kept_until_something_changes(compared, policies, tmp_path, monkeypatch):
    asked = []
    found = [QuestionResult(**row) for row in answers(compared.folder)["other"]]
    # In place of the answers of seconds.
    monkeypatch.setattr(CompareCLI, "_evaluate", lambda self, config: asked.append(name_of(config)) or found)

    def name_of(config) -> str:
        return Path(config.model.init_args.policy.pretrained).name

    shutil.copytree(compared.folder, tmp_path / "out")
    again = [*compared.command[:-1], str(tmp_path / "out")]
    lit_rl(*again)
    assert asked == []
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == compared.report
    weights = Path(policies.other) / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # as after another training
    lit_rl(*again)
    assert asked == ["other"]
    lit_rl(*again, "--model.evaluation.samples", 3)
    assert asked == ["other", "base", "base", "other", "adapter"]
    asked.clear()
    base = Path(policies.base) / "model.safetensors"
    base.write_bytes(base.read_bytes())
    lit_rl(*again, "--model.evaluation.samples", 3)
    assert asked == ["base", "base", "adapter"], "the adapter depends on its base"


def test_a_limit_takes_questions_evenly_spread_and_is_announced(compared, policies, tmp_path, caplog):
    named = [f"base={policies.base}", f"other={policies.other}"]
    with caplog.at_level("INFO"):
        lit_rl("compare", *named, "--config", compared.config, "--split", "val", "--limit", 3, "--folder", tmp_path)
    every = [row["number"] for row in answers(compared.folder)["base"]]
    for rows in answers(tmp_path).values():
        assert [row["number"] for row in rows] == [every[0], every[2], every[5]]  # places 0, 8/3 and 16/3
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == (
        f"Comparing base ({policies.base}), other ({policies.other}) on at most 3 questions of Arithmetic's validation set, "
        f"evenly spread: one greedy completion and 2 samples at temperature 1.0 each. Results go to {tmp_path}."
    )


@pytest.mark.long
def test_two_ranks_leave_the_answers_of_one(compared, tmp_path):
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "lit_rl", *compared.command[:-1], str(tmp_path), *ranks]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(Path(exported.__file__).parent)})
    assert answers(tmp_path) == answers(compared.folder)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "write lit-rl compare and two policies or more, each as NAME=FOLDER, before all options;"),
        (["a=x"], "write lit-rl compare and two policies or more"),
        (["x", "b=y"], "compare: 'x' is not a policy; write NAME=FOLDER, for example sft=runs/sft/export."),
        (["a=", "b=y"], "compare: 'a=' is not a policy"),
        (["../a=x", "b=y"], "compare: '../a=x' is not a policy"),
        (["a=x", "a=y"], "compare: two policies are called 'a'; give each a name of its own."),
        (["--limit", "3", "a=x", "b=y"], "write lit-rl compare and two policies or more"),
        (["a=x", "b=y", "--data", "GSM8K", "--limt", "3"], "unknown option 'limt'. Did you mean 'limit'?"),
        (["a=x", "b=y", "--data", "GSM8K", "--data.pth", "z"], "unknown option 'data.pth'. Did you mean 'data.path'?"),
        (["a=x", "b=y", "--data", "GSM8K", "--limit", "-1"], "limit: "),
        (["a=x", "b=y", "--data", "GSM8K", "--split", "dev"], "split: expected 'val', 'test'; got 'dev'"),
        (["a=x", "b=y", "--limit", "3"], "data"),
        (["a=x", "b=y", "--data", "GSM8K", "--ckpt_path", "z"], "unknown option 'ckpt_path'."),
        (["a=./x", "b=y", "--data", "GSM8K"], "policy a: model.policy.pretrained: the folder './x' does not exist;"),
        (
            ["a=x", "b=y", "--data", "GSM8K", "--model", "SFT", "--model.evaluation", "NextTokenEvaluation"],
            "model.evaluation is lit_rl.evaluation.NextTokenEvaluation; compare takes Evaluation",
        ),
    ],
)
def test_a_wrong_comparison_gets_one_line(args, message, tmp_path):
    folder = ["--folder", tmp_path / "out"] if len(args) > 2 and args[-1] != "b=y" else []
    assert message in refusal("compare", *args, *folder)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_is_refused_before_any_question(compared, policies, tmp_path):
    broken = shutil.copytree(policies.base, tmp_path / "broken")
    (broken / "config.json").unlink()
    command = [
        "compare",
        f"base={policies.base}",
        f"broken={broken}",
        "--config",
        compared.config,
        "--folder",
        tmp_path / "out",
    ]
    assert f"policy broken: {broken} holds neither config.json nor adapter_config.json" in refusal(*command)
    assert not (tmp_path / "out").exists()


def test_kept_answers_that_cannot_be_read_are_named(compared, tmp_path):
    shutil.copytree(compared.folder, tmp_path / "out")
    file = tmp_path / "out" / "policies" / "twin.json"
    file.write_text("[]")
    assert f"{file}: this is not what lit-rl has written" in refusal(*compared.command[:-1], tmp_path / "out")
