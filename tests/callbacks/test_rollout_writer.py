"""Rollouts that `predict` records: what a line holds, and that a recording goes on where it stopped."""

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from killed_recordings import killed_recording
from recorded_runs import Digits, lines, record, recorder
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.algorithms import SFT
from lit_rl.callbacks import RolloutWriter
from lit_rl.datamodules import PositionSpec
from lit_rl.datamodules.recorded_lines import read_recording
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.rewards import ArithmeticAnswer, FinalNumber, MathAnswer
from lit_rl.sampling import Sampler
from lit_rl.training.recording import question_entries


def answered():
    """Two completions of each of two questions, as a sampler would have left them."""
    prompts = prompts_of([4, 5], [6])
    rollouts = rollouts_of(prompts, 2, [[7, 2], [8, 8, 8], [3], [7, 7, 2]])
    rollouts.texts = ["4<answer>2", "1,1", "", "<answer>3"]
    rollouts.truncated = torch.tensor([False, True, False, False])
    rollouts.rewards, rollouts.parts = torch.tensor([0.5, 0.1, 1.0, 0.0]), {"digits": torch.tensor([1.0, 0.2, 2.0, 0.0])}
    return rollouts


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_holds_the_question_and_its_completions():
    first, _ = question_entries(answered(), ArithmeticAnswer(), ())
    assert {name: first[name] for name in ("number", "question", "gold_answer", "reward")} == {
        "number": 100,
        "question": "prompt 0",
        "gold_answer": "0",
        "reward": 0.3,  # the mean of 0.5 and 0.1
    }
    assert first["prompts"] == [{"text": "prompt 0", "token_ids": [4, 5]}]
    output, cut = first["arm_outputs"]
    assert output == {
        "arm": "",
        "full_text": "4<answer>2",
        "reasoning": "4",
        "answer": "2",
        "reward": 0.5,
        "parts": {"digits": 1.0},
        "temperature": 1.0,
        "length": 2,
        "truncated": False,
        "stopped": False,
        "token_ids": [7, 2],
        "logprobs": [-0.125, -0.25],
        "entropies": [0.25, 0.5],
        "prompt": 0,
    }
    assert (cut["answer"], cut["truncated"]) == (None, True), "a number that was cut off may lack digits"


def test_outputs_name_their_arms_and_prompts():
    rollouts = answered()
    rollouts.group, rollouts.arm = torch.zeros(4, dtype=torch.long), torch.tensor([1, 0, 0, 1])
    (entry,) = question_entries(rollouts, ArithmeticAnswer(), ("precise", "reflective"))
    assert [output["arm"] for output in entry["arm_outputs"]] == ["reflective", "precise", "precise", "reflective"]
    assert [output["prompt"] for output in entry["arm_outputs"]] == [0, 0, 1, 1]
    assert [prompt["token_ids"] for prompt in entry["prompts"]] == [[4, 5], [6]]


def test_a_completion_that_could_not_be_scored_has_no_reward():
    rollouts = answered()
    rollouts.scored = torch.tensor([False, True, False, False])
    first, second = question_entries(rollouts, ArithmeticAnswer(), ())
    assert [output["reward"] for output in first["arm_outputs"]] == [None, 0.1]
    assert (first["reward"], second["reward"]) == (0.1, None)


@pytest.mark.parametrize(
    ("judge", "text", "reasoning"),
    [
        (FinalNumber(), "2 + 2 = 4\n#### 4", "2 + 2 = 4\n"),
        (FinalNumber(), "no marker", "no marker"),
        (MathAnswer(), r"so \boxed{1} or \boxed{2}", r"so \boxed{1} or "),
        (ArithmeticAnswer(), "12", ""),
    ],
)
def test_reasoning_is_what_stands_before_the_answer(judge, text, reasoning):
    assert judge.reasoning(text) == reasoning


@pytest.mark.parametrize("sampler", [Sampler(4), Sampler(4, temperature=[0.5, 1.5], top_p=0.8)], ids=["plain", "nucleus"])
def test_what_was_recorded_is_read_to_the_last_bit(sampler, tmp_path):
    drawn = []

    class Keep(RolloutCallback):
        def on_rollout_start(self, trainer, module, prompts):
            drawn.append(prompts)
            return prompts

    module = recorder("float32", sampler=sampler)
    trainer = quiet_trainer(tmp_path, callbacks=[RolloutWriter(4), Keep()])
    trainer.predict(module, tiny_data(eval_batch_size=4), return_predictions=False)
    again = module.actor.generate(sampler, drawn[0], 4, rollout=0)
    again.rewards = Digits().score(again)
    for number, row in enumerate(lines(tmp_path / "rollouts.jsonl")):
        read, group = read_recording(row, pad_id=0).rollouts, again.select([number])
        for name in ("completion_ids", "lengths", "truncated", "logprobs", "temperature", "rewards"):
            assert torch.equal(read.tensors[name], group.tensors[name]), name
        assert torch.equal(read.entropies * read.mask, group.entropies * group.mask)
        assert read.texts == group.texts
        assert (read.support is None) == (group.support is None)
        if group.support:
            assert torch.equal(read.support.ids, group.support.ids)
            assert torch.equal(read.support.counts, group.support.counts)


# --- recording -------------------------------------------------------------------------------------------------------


def test_training_questions_are_recorded_up_to_the_limit(tmp_path):
    recorded = lines(record(tmp_path, limit=6))
    assert [entry["number"] for entry in recorded] == list(range(6))
    data = tiny_data()
    data.setup("fit")
    assert [entry["question"] for entry in recorded] == [data.train_set[number].prompt for number in range(6)]
    assert recorded[0]["run"]["sampling"] == {"max_new_tokens": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert recorded[0]["run"]["policy"] == "llama from scratch"


def test_predict_without_the_writer_answers_the_test_problems(tmp_path):
    predicted = quiet_trainer(tmp_path).predict(recorder(), tiny_data(test_problems=6))
    assert [set(row) for batch in predicted for row in batch] == [{"prompt", "completion", "reference"}] * 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.5, 0.99], ids=["nothing", "inside a batch", "half a line", "all but its end"])
def test_a_recording_goes_on_where_it_stopped(kept, tmp_path):
    file = record(tmp_path, recorder("float32"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    record(tmp_path, recorder("float32"))
    assert file.read_bytes() == whole


def test_a_finished_recording_samples_nothing(tmp_path):
    record(tmp_path)
    trainer = quiet_trainer(tmp_path, callbacks=[writer := RolloutWriter(16)])
    trainer.predict(recorder(), tiny_data(eval_batch_size=4), return_predictions=False)
    assert writer.written == 0


def test_a_killed_recording_loses_and_repeats_nothing(tmp_path):
    assert killed_recording(tmp_path, kills=2, seed=0)[1] == "half a line"


@pytest.mark.long
def test_a_recording_that_is_killed_20_times_loses_and_repeats_nothing(tmp_path):
    states = killed_recording(tmp_path, kills=20, seed=1)
    assert states.count("half a line") >= 5
    assert "too late" not in states


def texts(entry):
    return [output["full_text"] for output in entry["arm_outputs"]]


def test_two_processes_record_the_questions_of_one(tmp_path):
    record(tmp_path / "one", limit=7)
    record(tmp_path / "two", limit=7, strategy="ddp_fork", devices=2)
    files = [tmp_path / "two" / f"rollouts.rank{rank}.jsonl" for rank in (0, 1)]
    assert [[entry["number"] for entry in lines(file)] for file in files] == [[0, 2, 4, 6], [1, 3, 5]]
    # Batches differ, so log-probabilities may round differently.
    said = {entry["number"]: texts(entry) for file in files for entry in lines(file)}
    assert {entry["number"]: texts(entry) for entry in lines(tmp_path / "one/rollouts.jsonl")} == said


def test_a_recording_goes_on_with_another_number_of_processes(tmp_path):
    record(tmp_path, limit=7, strategy="ddp_fork", devices=2)
    first = tmp_path / "rollouts.rank1.jsonl"
    first.write_bytes(first.read_bytes()[:-100])  # question 5 is lost in its middle
    rest = record(tmp_path, limit=9)
    assert [entry["number"] for entry in lines(rest)] == [5, 7, 8]
    assert [entry["number"] for entry in lines(first)] == [1, 3]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"sampler": Sampler(4, top_p=0.9)}, "sampling {'max_new_tokens': 4.*'top_p': 1.0}, and now it is .*'top_p': 0.9"),
        ({"reward": ArithmeticAnswer()}, "reward 'Digits', and now it is 'ArithmeticAnswer'"),
    ],
)
def test_a_recording_is_not_mixed_with_another(options, changed, tmp_path):
    record(tmp_path, limit=4)
    with pytest.raises(ValueError, match=changed):
        record(tmp_path, recorder(**options), limit=8)


def test_weights_that_changed_are_another_policy(tmp_path):
    record(tmp_path, limit=4)
    module = recorder()
    trainer = quiet_trainer(tmp_path, callbacks=[RolloutWriter(8)])
    module.trainer = trainer
    module.configure_model()
    with torch.no_grad():
        next(module.policy.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="was recorded with weights"):
        trainer.predict(module, tiny_data(), return_predictions=False)


def test_the_writer_has_no_place_in_fit(tmp_path):
    with pytest.raises(ValueError, match="has nothing to do in fit"):
        quiet_trainer(tmp_path, callbacks=[RolloutWriter()], max_steps=1).fit(recorder(), tiny_data())


def test_an_algorithm_that_does_not_sample_is_refused(tmp_path):
    with pytest.raises(ValueError, match="SFT does not: write GRPO"):
        record(tmp_path, SFT(tiny_spec(), evaluation=Evaluation(4)))


def test_positions_of_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="leave positions out"):
        record(tmp_path, data=tiny_data(positions=PositionSpec()))
