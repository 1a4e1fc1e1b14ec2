"""Recorded rollouts as training data: what is read, what is refused, and the best answers for SFT."""

import json
import re

import pytest
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback
from recorded_runs import lines, opened, record, recorder, replayed
from tiny_runs import lit_rl, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, RPT, SFT
from lit_rl.datamodules import Recorded
from lit_rl.evaluation import Evaluation
from lit_rl.models import PolicySpec


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Four completions of each of 16 questions."""
    return record(tmp_path_factory.mktemp("recorded"))


def written(file, folder, change) -> Recorded:
    """The recorded rollouts after a change of their entries."""
    entries = lines(file)
    change(entries)
    copy = folder / "rollouts.jsonl"
    copy.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return replayed(copy)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_questions_are_read_with_their_prompts_as_token_ids(recorded):
    data = opened(replayed(recorded))
    entry = lines(recorded)[3]
    sample = data.train_set[3]
    assert (sample.number, sample.question, sample.reference) == (3, entry["question"], entry["gold_answer"])
    assert list(sample.context) == entry["prompts"][0]["token_ids"]
    assert len(data.train_set) == 16
    assert len(data.val_set) == 16, "of the problems"


def test_files_of_two_processes_are_one_recording(recorded, tmp_path):
    rows = recorded.read_text().splitlines(keepends=True)
    for rank in (0, 1):
        (tmp_path / f"rollouts.rank{rank}.jsonl").write_text("".join(rows[rank::2]))
    one, two = opened(replayed(recorded)), opened(replayed(tmp_path))
    assert one.train_set == two.train_set
    assert one.state_dict() == two.state_dict()


def test_a_completion_without_reward_is_left_out_of_the_loss(recorded, tmp_path):
    def forget(entries):
        entries[0]["arm_outputs"][2]["reward"] = None

    rollouts = opened(written(recorded, tmp_path, forget)).recordings[0].rollouts
    assert rollouts.scored.tolist() == rollouts.in_loss.tolist() == [True, True, False, True]
    assert rollouts.rewards[2] == 0


@pytest.mark.long  # `tests/cli/test_configs.py` parses such configs
def test_the_command_line_records_and_replays(tmp_path):
    config = tiny_config(tmp_path / "rollouts", "GRPO", ({"class_path": "RolloutWriter", "init_args": {"limit": 8}},))
    lit_rl("predict", "--config", write_yaml(tmp_path / "rollouts.yaml", config))
    assert len(lines(tmp_path / "rollouts/rollouts.jsonl")) == 8
    assert not (tmp_path / "rollouts/predictions.jsonl").exists()
    config = tiny_config(tmp_path / "run", "GRPO", max_steps=1, val_check_interval=1) | {"data": config["data"]}
    path = str(tmp_path / "rollouts")
    config["data"] = {"class_path": "Recorded", "init_args": {"path": path, "problems": config["data"], "batch_size": 4}}
    lit_rl("fit", "--config", write_yaml(tmp_path / "run.yaml", config))
    header, *_ = (tmp_path / "run/logs/version_0/metrics.csv").read_text().splitlines()
    assert "val/accuracy" in header
    assert "rewards/correct/mean" in header, "the recorded reward, by its name"


# --- best answers ----------------------------------------------------------------------------------------------------


def answers(file, folder, *outputs, **options):
    """Targets that SFT learns of one question with the given tokens, rewards and truncations."""

    def change(entries):
        del entries[1:]
        template = entries[0]["arm_outputs"][0]
        entries[0]["arm_outputs"] = [
            template
            | {"token_ids": ids, "logprobs": [-1.0] * len(ids), "entropies": [1.0] * len(ids)}
            | {"reward": reward, "truncated": truncated}
            for ids, reward, truncated in outputs
        ]

    written(file, folder, change)
    data = replayed(folder / "rollouts.jsonl", **options)
    return [list(sample.target) for sample in opened(data, SFT(tiny_spec(), evaluation=Evaluation(4))).train_set]


WORST, BEST, SAME, CUT, UNKNOWN = (
    ([8, 2], 0.1, False),
    ([7, 2], 0.9, False),
    ([7, 2], 0.9, False),
    ([9, 9], 2.0, True),
    ([6, 2], None, False),
)


def test_sft_learns_the_best_finished_answer(recorded, tmp_path):
    assert answers(recorded, tmp_path, WORST, CUT, BEST, UNKNOWN, best=1) == [[7, 2]]


def test_equal_answers_count_once(recorded, tmp_path):
    assert answers(recorded, tmp_path, BEST, SAME, WORST, best=2) == [[7, 2], [8, 2]]


def test_answers_below_the_least_reward_are_left_out(recorded, tmp_path):
    assert answers(recorded, tmp_path, WORST, BEST, best=9, min_reward=0.5) == [[7, 2]]
    with pytest.raises(ValueError, match="no answer to learn; lower"):
        answers(recorded, tmp_path, WORST, best=1, min_reward=0.5)


def test_sft_learns_the_recorded_tokens(recorded, tmp_path):
    data = replayed(recorded, best=2, min_reward=0.0, batch_size=2)
    module = SFT(tiny_spec(), evaluation=Evaluation(4))
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch.rows)

    quiet_trainer(tmp_path, max_steps=1, callbacks=[Watch()]).fit(module, data)
    rows = seen[0]
    learnt = {tuple(ids[target].tolist()) for ids, target in zip(rows.ids, rows.target, strict=True)}
    outputs = [output for entry in lines(recorded) for output in entry["arm_outputs"]]
    assert learnt <= {tuple(output["token_ids"]) for output in outputs if not output["truncated"]}


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_file_of_another_tokenizer_is_refused(recorded):
    module = GRPO(PolicySpec(config={"model_type": "llama"}, size="tiny", tokenizer="reasoning"), evaluation=Evaluation(4))
    with pytest.raises(ValueError, match=r"question 0 was recorded with another tokenizer \(that of llama from scratch"):
        opened(replayed(recorded), module)


def set_output(name, value):
    return lambda entries: entries[1]["arm_outputs"][0].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.append(entries[2]), "question 2 is recorded twice"),
        (lambda entries: entries.clear(), "no question is recorded"),
        (lambda entries: entries[1].pop("prompts"), "line 2: field 'prompts' is missing"),
        (lambda entries: entries[1].update(arm_outputs=[]), "line 2: field 'arm_outputs' is an empty list"),
        (lambda entries: entries[1].update(number="1"), "line 2: field 'number' is of type str; write int"),
        (set_output("prompt", 1), "line 2: .*there are 1 prompts"),
        (set_output("logprobs", [-1.0]), "line 2: an output has another number of 'logprobs' than of 'token_ids'"),
        (set_output("entropies", ["a"]), "line 2: field 'entropies' holds 'a'"),
        (set_output("logprobs", [float("nan")] * 4), "line 2: field 'logprobs' of an output holds a number that is not finite"),
        (set_output("token_ids", []), "line 2: field 'token_ids' is an empty list"),
        (set_output("reward", "much"), "line 2: field 'reward' is of type str"),
    ],
)
def test_malformed_recordings_are_refused(change, message, recorded, tmp_path):
    with pytest.raises(ValueError, match=message):
        opened(written(recorded, tmp_path, change))


def test_half_a_line_is_refused_or_left_out(recorded, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    file.write_bytes(recorded.read_bytes()[:-50])
    with pytest.raises(ValueError, match="line 16: not JSON"):
        opened(replayed(file))
    with pytest.warns(UserWarning, match="left out 1 malformed"):
        assert len(opened(replayed(file, malformed="skip")).train_set) == 15


def test_a_path_without_recordings_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.jsonl"):
        with pytest.raises(ValueError, match="nor a folder with rollouts"):
            opened(replayed(path))


def test_recorded_questions_are_no_held_out_problems(recorded, tmp_path):
    data = tiny_data()
    data.setup("fit")
    question = data.val_set[5].prompt
    with pytest.raises(ValueError, match="the recorded question 4 is one of the val problems"):
        opened(written(recorded, tmp_path, lambda entries: entries[4].update(question=question)))


def test_min_reward_goes_with_best():
    with pytest.raises(ValueError, match="is for SFT on best answers"):
        Recorded("rollouts.jsonl", tiny_data(), min_reward=0.5)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: SFT(tiny_spec(), evaluation=Evaluation(4)), {}, "write data.best 1"),
        (lambda: recorder(), {"best": 1}, "data.best is for SFT"),
        (lambda: recorder(policy=tiny_spec(config={"max_position_embeddings": 8})), {}, "after the model's 8 positions"),
        (
            lambda: RPT(PolicySpec(config={"model_type": "llama"}, size="tiny", tokenizer="arithmetic")),
            {},
            "RPT learns positions",
        ),
    ],
)
def test_what_cannot_learn_from_recordings_is_refused_before_the_first_step(module, options, message, recorded, tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    with pytest.raises(ValueError, match=re.compile(message)):
        trainer.fit(module(), replayed(recorded, **options))
