"""Arms from the command line: a sampler by its class, arms and styles by YAML, names in the log and in the sample table."""

import csv
import json

import pytest
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

ARMS = [
    {"name": "cool", "style": "terse", "temperature": 0.5},
    {"name": "warm", "style": "plain", "temperature": 1.0},
]
STYLES = {"terse": "Write the steps alone.", "plain": ""}


def config(folder, sampler: dict) -> str:
    content = tiny_config(folder, "GRPO", callbacks=[{"class_path": "SampleTable", "init_args": {"every_n_steps": 1}}])
    content["model"]["init_args"] |= {"sampler": sampler}
    content["model"]["init_args"]["policy"] = {
        "config": {"model_type": "llama", "max_position_embeddings": 128},
        "size": "tiny",
        "tokenizer": "stories",
    }
    content["model"]["init_args"]["reward"] = {"class_path": "RegimeW", "init_args": {"per": "response"}}
    judge = {"class_path": "Evaluation", "init_args": {"max_new_tokens": 4, "correct": {"class_path": "FinalNumber"}}}
    content["model"]["init_args"]["evaluation"] = judge
    sizes = {"batch_size": 4, "epoch_size": 16, "val_problems": 8, "test_problems": 8}
    content["data"] = {"class_path": "StoryProblems", "init_args": {"styles": [], **sizes}}
    return write_yaml(folder / "arms.yaml", content)


def test_arms_are_named_in_the_log_and_in_the_sample_table(tmp_path):
    options = {"max_new_tokens": 4, "arms": ARMS, "styles": STYLES}
    lit_rl("fit", "--config", config(tmp_path, {"class_path": "ArmSampler", "init_args": options}))
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in lines} == {"cool", "warm"}
    for line in lines:
        assert line["prompt"].startswith("Write the steps alone.") == (line["arm"] == "cool")
        assert set(line) >= {"rewards/s_end", "rewards/s_path", "rewards/s_cf", "rewards/s_wm"}
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(metrics.open()) if row["reward"]]
    assert [row["arms/cool/share"] for row in rows] == [row["arms/warm/share"] for row in rows] == ["0.5", "0.5"]
    assert all(row["arms/cool/reward"] for row in rows)


@pytest.mark.parametrize(
    ("sampler", "flags", "message"),
    [
        ({"class_path": "ArmSampler", "init_args": {"arm": []}}, [], "arm"),
        ({"max_new_tokens": 4}, ["--model.sampler", "ArmSampler", "--model.sampler.armz", "[]"], "armz"),
        ({"class_path": "ArmSampler"}, ["--model.group_size", "4"], "model.group_size is 4 and sampler.arms has 8 arms"),
        ({"max_new_tokens": 4}, ["--model.reward.per", "question"], "pays all completions of a question alike"),
        ({"max_new_tokens": 4}, ["--trainer.callbacks+", "Bandit"], "Bandit chooses among arms, and this run has none"),
    ],
)
def test_wrong_arms_get_one_line(tmp_path, sampler, flags, message):
    assert message in refusal("fit", "--config", config(tmp_path, sampler), *flags)


def test_data_without_questions_are_refused_before_the_first_step(tmp_path):
    flags = ["--data", "Arithmetic", "--data.val_problems", "8", "--data.test_problems", "8", "--data.batch_size", "4"]
    options = {"class_path": "ArmSampler", "init_args": {"arms": ARMS, "styles": STYLES}}
    flags += ["--model.evaluation.correct", "ArithmeticAnswer", "--model.policy.tokenizer", "arithmetic"]
    assert "has no question, which ArmSampler puts into the styles" in refusal(
        "fit", "--config", config(tmp_path, options), *flags
    )
