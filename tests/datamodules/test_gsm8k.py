"""GSM8K: who is trained on and who is held out, what is asked and answered, what malformed files get, and real runs."""

import json

import pytest
from math_runs import CHAT, attached, bpe_folder, real_file, text_of_positions, train_and_test, write_jsonl
from transformers import AutoTokenizer

from lit_rl.algorithms import GRPO, SFT
from lit_rl.datamodules import GSM8K, PositionSpec
from lit_rl.datamodules.jsonl import split_of
from lit_rl.rewards import FinalNumber
from lit_rl.text.token_bytes import read_pieces


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
    held_out = {question for question in questions(TRAIN) if split_of(question) < 0.3}
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


def test_testing_on_the_training_file_is_refused(folder, tokenizer):
    path = f"{folder}/gsm8k_train.jsonl"
    with pytest.raises(ValueError, match=r"0 training, 0 validation and 40 test problems; .* another file than you train on"):
        attached(GSM8K(path, path), tokenizer)


def test_two_files_are_the_folder_of_both(folder, tokenizer):
    files = [f"{folder}/gsm8k_{split}.jsonl" for split in ("train", "test")]
    apart, together = attached(GSM8K(*files), tokenizer), attached(GSM8K(folder), tokenizer)
    assert (apart.train_set, apart.test_set) == (together.train_set, together.test_set)


def test_evaluation_problems_are_limited_and_spread(folder, tokenizer):
    whole, few = (attached(GSM8K(folder, eval_problems=count), tokenizer) for count in (0, 3))
    assert few.test_set == [whole.test_set[place] for place in (0, 3, 6)]
    assert (len(few.val_set), few.train_set) == (3, whole.train_set)


def test_a_hash_is_spread_over_its_range_and_does_not_change():
    assert split_of("") == 0xE3B0C44298FC / 2**48  # SHA-256 of nothing begins so
    places = [split_of(str(number)) for number in range(2000)]
    assert 0 <= min(places) < 0.01 < 0.99 < max(places) < 1
    assert sum(place < 0.2 for place in places) == pytest.approx(400, abs=60)


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


def test_a_chat_template_is_used_where_there_is_one(folder, tmp_path):
    chatting = bpe_folder(tmp_path / "chat", ["Ann"], CHAT)
    prompt = attached(GSM8K(folder), chatting).test_set[0].prompt
    assert prompt.startswith(f"<bos><|user|>{TEST[0]['question']}\n\n")
    assert prompt.endswith("#### <number>.<|end|><|assistant|>")
    assert "<|" not in attached(GSM8K(folder, chat=False), chatting).test_set[0].prompt


def test_a_prompt_begins_as_the_tokenizer_begins_its_texts(folder, tokenizer, tmp_path):
    opening = AutoTokenizer.from_pretrained(tokenizer)
    opening._tokenizer.post_processor = _with_bos(opening.bos_token_id)
    opening.save_pretrained(tmp_path / "bos")
    assert attached(GSM8K(folder), str(tmp_path / "bos")).test_set[0].prompt.startswith("<bos>Ann")
    assert attached(GSM8K(folder), tokenizer).test_set[0].prompt.startswith("Ann")


def _with_bos(number):
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", number)])


def test_positions_lie_inside_the_solution_and_their_pieces_are_its_text(folder, tokenizer):
    data = attached(GSM8K(folder, positions=PositionSpec(labels_length=3, eval_positions=20)), tokenizer)
    whole = attached(GSM8K(folder), tokenizer).train_set
    context, targets = text_of_positions(data.train_set, 2)
    assert context.decode() == whole[2].prompt.split("\n\n")[0] + "\n\n", "the question alone, whatever template RPT adds"
    assert targets.decode() == whole[2].completion
    sample = data.train_set[0]
    assert len(sample.target) == len(read_pieces(sample.reference)) == 3
    assert whole[0].completion.encode().startswith(b"".join(read_pieces(sample.reference)))
    assert (len(data.val_set), len(data.test_set)) == (20, 20)


# --- what bad input gets ---------------------------------------------------------------------------------------------

BROKEN = {
    "no JSON": ('{"question": "a"', r"line 3: no JSON: .* at character 17"),
    "no object": ("[1, 2]", r"line 3: a list and no object; write \{\"question\": \.\.\.\}"),
    "no field": ({"question": "a"}, r"line 3: no field 'answer', only question"),
    "another type": ({"question": 7, "answer": "#### 1"}, r"line 3: field 'question' is of type int; write str"),
    "no marker": ({"question": "a", "answer": "It is 7."}, r"line 3: the solution in 'answer' does not end in a line ####"),
    "nested": ("[" * 100_000, r"line 3: no JSON that can be read"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_malformed_line_is_refused_by_its_number(folder, tokenizer, tmp_path, fault):
    line, message = BROKEN[fault]
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [TRAIN[0], "", line, *TRAIN[1:]])
    with pytest.raises(ValueError, match=rf"gsm8k_train\.jsonl, {message}") as error:
        attached(GSM8K(folder), tokenizer)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused_by_their_line(folder, tokenizer, tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"gsm8k_test\.jsonl, line 1: no UTF-8 at byte 14"):
        attached(GSM8K(folder), tokenizer)


def test_malformed_lines_are_skipped_and_reported_with_their_numbers(folder, tokenizer, tmp_path):
    bad = [line for line, _ in BROKEN.values()]
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [TRAIN[0], *bad, *TRAIN[1:]])
    with pytest.warns(UserWarning, match=r"line 2, 3, 4, 5, 6, \.\.\.: left out 6 malformed; the first: no JSON"):
        data = attached(GSM8K(folder, malformed="skip"), tokenizer)
    left = [*data.train_set, *data.val_set]
    assert asked(left) == questions(TRAIN)
    assert len(left) == len(TRAIN)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", r"0 files nowhere/\*train\*\.jsonl"), ("{}/gsm8k_train.jsonl", "data.test_path: no file None")],
)
def test_a_missing_file_is_named_before_anything_runs(folder, path, message):
    with pytest.raises(ValueError, match=message):
        GSM8K(path.format(folder)).prepare_data()


def test_a_data_set_that_is_not_to_be_had_says_to_give_a_path():
    with pytest.raises(ValueError, match=r"data\.dataset: cannot load 'nobody/nothing' .*set data\.path") as error:
        GSM8K(dataset="nobody/nothing").prepare_data()
    assert "\n" not in str(error.value)


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"data\.val_share is 1\.5"):
        GSM8K(val_share=1.5)


def test_a_data_set_by_name_gives_the_same_samples(folder, tokenizer, tmp_path, monkeypatch):
    files = [{"split": split, "path": f"gsm8k_{split}.jsonl"} for split in ("train", "test")]
    card = f"---\nconfigs: {json.dumps([{'config_name': 'main', 'data_files': files}])}\n---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    by_name, by_path = attached(GSM8K(dataset=folder), tokenizer), attached(GSM8K(folder), tokenizer)
    assert by_name.train_set == by_path.train_set
    assert by_name.test_set == by_path.test_set


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SFT, GRPO])
def test_it_trains_and_tests(tmp_path, folder, tokenizer, algorithm):
    data = GSM8K(folder, batch_size=4, eval_problems=4)
    metrics = train_and_test(tmp_path / "run", data, tokenizer, FinalNumber(), algorithm)
    assert metrics["loss"] > 1 if algorithm is SFT else metrics["reward"] == 0


@pytest.mark.parametrize("algorithm", [SFT, GRPO])
def test_the_real_files_train_and_test(tmp_path, tokenizer, algorithm):
    data = GSM8K(real_file("gsm8k_train.jsonl"), real_file("gsm8k_test.jsonl"), batch_size=4, eval_problems=4)
    metrics = train_and_test(tmp_path, data, tokenizer, FinalNumber(), algorithm)
    assert metrics["loss"] > 1 if algorithm is SFT else metrics["reward"] == 0


def test_the_real_files_are_split_80_to_20_and_nothing_is_lost(tokenizer):
    data = attached(GSM8K(real_file("gsm8k_train.jsonl"), real_file("gsm8k_test.jsonl")), tokenizer)
    assert len(data.train_set) + len(data.val_set) == 7473
    assert len(data.val_set) == pytest.approx(0.2 * 7473, rel=0.05)
    assert len(data.test_set) == 1319
    assert not any("<<" in sample.completion for sample in [*data.train_set, *data.test_set])


def test_positions_of_the_real_files_are_their_solutions(tokenizer):
    options = {"path": real_file("gsm8k_train.jsonl"), "test_path": real_file("gsm8k_test.jsonl")}
    positions = attached(GSM8K(**options, positions=PositionSpec()), tokenizer).train_set
    whole = attached(GSM8K(**options), tokenizer).train_set
    for document in range(0, len(whole), 500):
        assert text_of_positions(positions, document)[1].decode() == whole[document].completion
