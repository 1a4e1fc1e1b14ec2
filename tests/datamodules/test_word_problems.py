"""Data sets of problems in words, by the example of GSM8K: samples, prompts, positions, and what bad input gets."""

import json

import pytest
from math_runs import CHAT, attached, bpe_folder, text_of_positions, write_jsonl
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lit_rl.datamodules import GSM8K, PositionSpec
from lit_rl.text.token_bytes import read_pieces


def row(count, start=3):
    """Ann buys pens."""
    question = f"Ann has {start} pens and buys {count} more. How many has she?"
    return {"question": question, "answer": f"She has {start + count} pens → all hers.\n#### {start + count}"}


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


# --- samples ---------------------------------------------------------------------------------------------------------


def test_evaluation_problems_are_limited_and_spread(folder, tokenizer):
    whole, few = (attached(GSM8K(folder, eval_problems=count), tokenizer) for count in (0, 3))
    assert few.test_set == [whole.test_set[place] for place in (0, 3, 6)]
    assert (len(few.val_set), few.train_set) == (3, whole.train_set)


def test_a_chat_template_is_used_if_there_is_one(folder, tmp_path):
    chatting = bpe_folder(tmp_path / "chat", ["Ann"], CHAT)
    prompt = attached(GSM8K(folder), chatting).test_set[0].prompt
    assert prompt.startswith(f"<bos><|user|>{TEST[0]['question']}\n\n")
    assert prompt.endswith("#### <number>.<|end|><|assistant|>")
    assert "<|" not in attached(GSM8K(folder, chat=False), chatting).test_set[0].prompt


def test_a_prompt_begins_as_the_tokenizer_begins_its_texts(folder, tokenizer, tmp_path):
    opening = AutoTokenizer.from_pretrained(tokenizer)
    opening._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", opening.bos_token_id)])
    opening.save_pretrained(tmp_path / "bos")
    assert attached(GSM8K(folder), str(tmp_path / "bos")).test_set[0].prompt.startswith("<bos>Ann")
    assert attached(GSM8K(folder), tokenizer).test_set[0].prompt.startswith("Ann")


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


def test_a_data_set_by_name_gives_the_same_samples(folder, tokenizer, tmp_path, monkeypatch):
    files = [{"split": split, "path": f"gsm8k_{split}.jsonl"} for split in ("train", "test")]
    card = f"---\nconfigs: {json.dumps([{'config_name': 'main', 'data_files': files}])}\n---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    by_name, by_path = attached(GSM8K(dataset=folder), tokenizer), attached(GSM8K(folder), tokenizer)
    assert by_name.train_set == by_path.train_set
    assert by_name.test_set == by_path.test_set


# --- what bad input gets ---------------------------------------------------------------------------------------------

BROKEN = [
    ('{"question": "a"', r"not JSON: .* at character 17"),
    ("[1, 2]", r"a list, not an object; write \{\"question\": \.\.\.\}"),
    ({"question": "a"}, "field 'answer' is missing; there is question"),
    ({"question": 7, "answer": "#### 1"}, "field 'question' is of type int; write str"),
    ({"question": "a", "answer": "It is 7."}, "the solution in 'answer' does not end in a line ####"),
    ("[" * 100_000, "JSON that is nested too deeply"),
    (r'{"question": "a\ud800b", "answer": "#### 1"}', r"field 'question' holds half a character \(\\ud800, a lone surrogate\)"),
]
"""Malformed lines, and their faults."""


def test_a_malformed_line_is_refused_by_its_number(folder, tmp_path):
    for line, message in BROKEN:
        write_jsonl(tmp_path / "gsm8k_train.jsonl", [TRAIN[0], "", line, *TRAIN[1:]])
        with pytest.raises(ValueError, match=rf"^[^\n]*gsm8k_train\.jsonl, line 3: {message}[^\n]*malformed: skip\.$"):
            GSM8K(folder).setup("fit")


def test_bytes_that_are_not_text_are_refused_by_their_line(folder, tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"gsm8k_test\.jsonl, line 1: not UTF-8 at byte 14"):
        GSM8K(folder).setup("fit")


def test_malformed_lines_are_skipped_and_reported_with_their_numbers(folder, tokenizer, tmp_path):
    whole = attached(GSM8K(folder), tokenizer)
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [*(line for line, _ in BROKEN), *TRAIN])
    with pytest.warns(UserWarning, match=r"line 1, 2, 3, 4, 5, \.\.\.: left out 7 malformed; the first: not JSON"):
        data = attached(GSM8K(folder, malformed="skip"), tokenizer)
    assert (data.train_set, data.val_set) == (whole.train_set, whole.val_set)


def test_a_data_set_that_is_not_to_be_had_says_to_give_a_path():
    with pytest.raises(ValueError, match=r"^data\.dataset: cannot load 'nobody/nothing' [^\n]*set data\.path[^\n]*$"):
        GSM8K(dataset="nobody/nothing").prepare_data()
