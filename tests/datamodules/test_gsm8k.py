"""GSM8K: who is trained on and who is held out, what is asked and answered, and real runs."""

import json

import pytest
from math_runs import attached, bpe_folder, part_of_real_file, real_file, text_of_positions, train_and_test, write_jsonl

from lit_rl.algorithms import GRPO, SFT
from lit_rl.datamodules import GSM8K, PositionSpec
from lit_rl.rewards import FinalNumber
from lit_rl.text.hash_split import hash_share


def row(count, start=3):
    """Ann buys pens."""
    total = start + count
    answer = f"She has {start}+{count}=<<{start}+{count}={total}>>{total} pens → all hers.\n#### {total}"
    return {"question": f"Ann has {start} pens and buys {count} more. How many has she?", "answer": answer}


TRAIN, TEST = [row(count) for count in range(40)], [row(count, start=5) for count in range(10)]


@pytest.fixture
def folder(tmp_path):
    """A small data set with the names of the real one."""
    write_jsonl(tmp_path / "gsm8k_train.jsonl", TRAIN)
    write_jsonl(tmp_path / "gsm8k_test.jsonl", TEST)
    return str(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe_folder(tmp_path_factory.mktemp("bpe"), [json.dumps(row, ensure_ascii=False) for row in TRAIN])


def questions(rows):
    return {row["question"] for row in rows}


def asked(samples):
    """Questions of samples."""
    return {sample.prompt.split("\n\n")[0] for sample in samples}


# --- sets ------------------------------------------------------------------------------------------------------------


def test_the_training_file_is_split_by_hash_and_the_test_file_stays_apart(folder, tokenizer):
    data = attached(GSM8K(folder, val_share=0.3), tokenizer)
    held_out = {question for question in questions(TRAIN) if hash_share(question) < 0.3}
    assert asked(data.val_set) == held_out
    assert asked(data.train_set) == questions(TRAIN) - held_out
    assert asked(data.test_set) == questions(TEST)


def test_a_problem_stays_on_its_side_when_others_come(folder, tokenizer, tmp_path):
    before = asked(attached(GSM8K(folder), tokenizer).val_set)
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [row(99), *reversed(TRAIN)])
    assert before == asked(attached(GSM8K(folder), tokenizer).val_set) - questions([row(99)])


def test_a_test_question_in_the_training_file_is_not_trained_on(folder, tokenizer, tmp_path):
    write_jsonl(tmp_path / "gsm8k_train.jsonl", TRAIN + TEST)
    data = attached(GSM8K(folder), tokenizer)
    assert not (asked(data.train_set) | asked(data.val_set)) & questions(TEST)


def test_testing_on_the_training_file_is_refused(folder):
    path = f"{folder}/gsm8k_train.jsonl"
    with pytest.raises(ValueError, match=r"0 training, 0 validation and 40 test problems, .* another file than you train on"):
        GSM8K(path, path).setup("fit")


def test_two_files_are_the_folder_of_both(folder, tokenizer):
    files = [f"{folder}/gsm8k_{split}.jsonl" for split in ("train", "test")]
    apart, together = attached(GSM8K(*files), tokenizer), attached(GSM8K(folder), tokenizer)
    assert (apart.train_set, apart.test_set) == (together.train_set, together.test_set)


def test_a_missing_file_is_named_before_anything_runs(folder):
    for path, message in (
        ("nowhere", r"0 files nowhere/\*train\*\.jsonl"),
        (f"{folder}/gsm8k_train.jsonl", "data.test_path: None is not a file"),
    ):
        with pytest.raises(ValueError, match=message):
            GSM8K(path).prepare_data()


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"data\.val_share is 1\.5"):
        GSM8K(val_share=1.5)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_asks_for_the_format_and_has_the_gold_answer(folder, tokenizer):
    sample = attached(GSM8K(folder), tokenizer).test_set[4]
    assert sample.prompt.startswith(f"{TEST[4]['question']}\n\n")
    assert sample.prompt.endswith("#### <number>.\n")
    assert (sample.completion, sample.reference) == ("She has 5+4=9 pens → all hers.\n#### 9", "9")


def test_calculator_marks_are_kept_on_demand(folder, tokenizer):
    sample = attached(GSM8K(folder, calculator_marks=True), tokenizer).test_set[4]
    assert sample.completion == "She has 5+4=<<5+4=9>>9 pens → all hers.\n#### 9"


def test_every_solution_earns_its_own_reward(folder, tokenizer):
    reward = FinalNumber()
    for sample in attached(GSM8K(folder), tokenizer).test_set:
        assert reward.is_right(reward.read(sample.completion, sample), sample)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_it_trains_by_sft_and_tests(tmp_path, folder, tokenizer):
    data = GSM8K(folder, batch_size=4, eval_problems=4)
    assert train_and_test(tmp_path / "run", data, tokenizer, FinalNumber(), SFT)["loss"] > 1


def test_it_trains_by_grpo_and_tests(tmp_path, folder, tokenizer):
    data = GSM8K(folder, batch_size=4, eval_problems=4)
    assert train_and_test(tmp_path / "run", data, tokenizer, FinalNumber(), GRPO)["reward"] == 0


def test_real_problems_train_by_sft_and_test(tmp_path, tokenizer):
    files = [part_of_real_file(f"gsm8k_{split}.jsonl", tmp_path, every=50) for split in ("train", "test")]
    data = GSM8K(*files, batch_size=4, eval_problems=4)
    assert train_and_test(tmp_path / "run", data, tokenizer, FinalNumber(), SFT)["loss"] > 1


def test_the_real_files_are_split_80_to_20_and_nothing_is_lost(tokenizer):
    data = attached(GSM8K(real_file("gsm8k_train.jsonl"), real_file("gsm8k_test.jsonl")), tokenizer)
    assert len(data.train_set) + len(data.val_set) == 7473
    assert len(data.val_set) == pytest.approx(0.2 * 7473, rel=0.05)
    assert len(data.test_set) == 1319
    assert not any("<<" in sample.completion for sample in [*data.train_set, *data.test_set])


def test_positions_of_real_problems_are_their_solutions(tmp_path, tokenizer):
    files = [part_of_real_file(f"gsm8k_{split}.jsonl", tmp_path, every=50) for split in ("train", "test")]
    positions = attached(GSM8K(*files, positions=PositionSpec()), tokenizer).train_set
    whole = attached(GSM8K(*files), tokenizer).train_set
    for document in range(0, len(whole), 10):
        assert text_of_positions(positions, document)[1].decode() == whole[document].completion
