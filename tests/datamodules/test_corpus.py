"""A corpus: read, tokenized once, divided, and cut into windows or positions."""

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_trainer, tiny_spec
from math_runs import attached, real_file, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import spaced

from lit_rl.algorithms import SFT
from lit_rl.datamodules import Corpus, PositionSpec, token_cache
from lit_rl.datamodules.base import collate
from lit_rl.datamodules.documents import find_source, read_source
from lit_rl.datamodules.token_cache import Piece, write_cache
from lit_rl.evaluation import Evaluation
from lit_rl.tasks.tokenizers import character_tokenizer
from lit_rl.types import TokenBatch

LINE = "the cat sat on the mat, and the dog on the log.\n"
NO_SHARES = {"val_share": 0.0, "test_share": 0.0}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer of printable characters on disk."""
    folder = tmp_path_factory.mktemp("tokenizer")
    character_tokenizer(string.printable + "äöü€").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path, tokenizer_folder):
    """Makes a corpus of this path or text, ready for use."""

    def make(source, **options):
        path = source
        if not isinstance(source, Path):
            path = tmp_path / "text.txt"
            path.write_text(source, encoding="utf-8")
        settings = {"window": 32, "cache_folder": str(tmp_path / "cache"), "batch_size": 4}
        return attached(Corpus(str(path), **{**settings, **options}), tokenizer_folder)

    return make


def text_of(data, ids):
    return data.tokenizer.decode(list(ids))


def target_text(data, windows):
    """All targets of windows, one after another."""
    return "".join(text_of(data, windows.ids[a:b]) for a, b in zip(windows.firsts, windows.ends, strict=True))


def documents_of(data, name):
    """The texts of a set, without their first characters."""
    windows, texts = getattr(data, name).windows, {}
    for first, end, limit in zip(windows.firsts, windows.ends, windows.limits.tolist(), strict=True):
        texts[limit] = texts.get(limit, "") + text_of(data, windows.ids[first:end])
    return set(texts.values())


def json_lines(path, texts):
    return Path(write_jsonl(path, [{"text": text} for text in texts]))


def test_every_character_but_the_first_is_a_target_once(corpus):
    data = corpus(LINE * 20, **NO_SHARES)
    assert target_text(data, data.train_set.windows) == (LINE * 20)[1:]


def test_windows_hold_context_and_what_follows(corpus):
    data = corpus("abcdefghijkl", window=6, context_tokens=2, **NO_SHARES)
    samples = [data.train_set[index] for index in range(len(data.train_set))]
    texts = [(text_of(data, sample.context), text_of(data, sample.target)) for sample in samples]
    assert texts == [("a", "bcdef"), ("ef", "ghij"), ("ij", "kl<eos>")]


def test_positions_know_what_follows_up_to_the_end_of_their_document(corpus):
    data = corpus("abcdef", window=4, context_tokens=2, positions=PositionSpec(labels_length=3), **NO_SHARES)
    last = data.train_set[len(data.train_set) - 1]
    second = data.train_set[1]
    assert (text_of(data, second.context), text_of(data, second.target)) == ("ab", "cde")
    assert (text_of(data, last.context), text_of(data, last.target)) == ("cde", "f")


def test_the_held_out_positions_are_thinned_and_the_others_are_not(corpus):
    data = corpus(LINE * 100, positions=PositionSpec(eval_positions=7), val_share=0.1, test_share=0.1)
    assert (len(data.val_set), len(data.test_set)) == (7, 7)
    assert len(data.train_set) == data.train_set.windows.num_targets


def test_of_a_single_document_the_last_parts_are_held_out(corpus):
    text = "".join(chr(97 + place // 10) for place in range(200))  # aaaaaaaaaabbbb...
    data = corpus(text, val_share=0.2, test_share=0.1)
    sets = [target_text(data, getattr(data, name).windows) for name in ("train_set", "val_set", "test_set")]
    assert sets == [text[1:140], text[141:180], text[181:]]


def test_no_document_is_in_two_sets_and_each_is_in_one(corpus, tmp_path):
    texts = [f"{number} {LINE}" for number in range(1000, 1300)]
    data = corpus(json_lines(tmp_path / "many.jsonl", texts), val_share=0.2, test_share=0.1)
    train, val, test = (documents_of(data, name) for name in ("train_set", "val_set", "test_set"))
    assert train | val | test == {text[1:] for text in texts}
    assert len(train) + len(val) + len(test) == 300
    assert 40 < len(val) < 80 < 150 < len(train)
    assert 15 < len(test) < 50


def test_a_document_stays_in_its_set_when_others_come_before_it(corpus, tmp_path):
    texts = [f"{number} {LINE}" for number in range(1000, 1100)]
    few = documents_of(corpus(json_lines(tmp_path / "few.jsonl", texts), val_share=0.3), "val_set")
    more = documents_of(corpus(json_lines(tmp_path / "more.jsonl", ["new" * 9, *reversed(texts)]), val_share=0.3), "val_set")
    assert few <= more


def test_a_folder_is_read_file_by_file_in_the_order_of_names(corpus, tmp_path):
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.txt").write_text("first")
    json_lines(folder / "more" / "c.jsonl", ["third", "fourth"])
    data = corpus(folder, **NO_SHARES)
    assert target_text(data, data.train_set.windows) == "irst" + "econd" + "hird" + "ourth"


def test_a_file_is_tokenized_in_pieces_as_in_one(corpus, tmp_path, monkeypatch):
    text = "".join(f"{'x' * (number % 7)} y\n" + "\n" * (number % 3) for number in range(300)) + "äöü€"
    whole = corpus(text, **NO_SHARES).train_set.windows.ids.tolist()
    monkeypatch.setattr("lit_rl.datamodules.documents.PIECE_BYTES", 40)
    monkeypatch.setattr("lit_rl.datamodules.token_cache.BATCH_CHARACTERS", 100)
    pieces = corpus(text, cache_folder=str(tmp_path / "other"), **NO_SHARES)
    assert pieces.train_set.windows.ids.tolist() == whole
    assert len(set(pieces.train_set.windows.limits)) == 1


def test_a_piece_inside_a_document_has_no_space_of_its_own(tmp_path):
    tokenizer = spaced("first")
    write_cache(
        tmp_path / "new", [Piece("Say:\n", True, False, 0.5, "text"), Piece("time", False, True, 1.0, "text")], tokenizer
    )
    ids = token_cache.read_cache(tmp_path / "new").ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁Say", ":", "\n", *"time"]


def test_a_model_reads_bos_before_each_window_if_the_tokenizer_puts_it(tmp_path):
    spaced("first", puts_bos=True).save_pretrained(tmp_path / "bos")
    (tmp_path / "text.txt").write_text("Say:" + " time" * 10)
    options = {"window": 6, "cache_folder": str(tmp_path / "cache"), **NO_SHARES}
    for positions in (None, PositionSpec()):
        data = attached(Corpus(str(tmp_path / "text.txt"), positions=positions, **options), str(tmp_path / "bos"))
        rows = [collate(data.tokenizer, [data.train_set[place]]).ids[0].tolist() for place in range(len(data.train_set))]
        assert all(row.count(data.tokenizer.bos_token_id) == 1 and row[0] == data.tokenizer.bos_token_id for row in rows)
        assert len(rows) == (3 if positions is None else 11)


def test_the_tokens_have_one_name_whatever_the_tokenizer_was_asked_before():
    tokenizer = character_tokenizer("abc")
    before = token_cache.cache_key("text", tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert token_cache.cache_key("text", tokenizer) == before


def test_ids_above_65535_get_four_bytes_in_a_vocabulary_with_gaps(tmp_path):
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 70_000}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    write_cache(tmp_path / "new", [Piece("ab", True, True, 1.0, "text")], tokenizer)
    assert token_cache.read_cache(tmp_path / "new").ids.tolist() == [1, 70_000]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + LINE.encode())
    (tmp_path / "lines.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\n')
    assert read(tmp_path / "text.txt") == [LINE]
    assert read(tmp_path / "lines.jsonl") == ["a"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    folder = tmp_path / ".hidden" / "books"  # hidden itself, and asked for by name
    for name in ("a.txt", ".git/config", "more/.cache/x.txt", "more/b.txt", ".c.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert read(folder) == ["a.txt", "more/b.txt"]


def test_the_tokens_are_memory_mapped_in_two_bytes_each(corpus):
    ids = corpus(LINE * 20, **NO_SHARES).train_set.windows.ids
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16


def test_a_corpus_is_tokenized_once(corpus, tmp_path, monkeypatch):
    first = corpus(LINE * 20, **NO_SHARES)
    monkeypatch.setattr(token_cache, "_encode", None)
    again = corpus(tmp_path / "text.txt", **NO_SHARES)
    assert again.train_set.windows.ids.tolist() == first.train_set.windows.ids.tolist()


def test_a_changed_file_is_tokenized_again(corpus):
    corpus(LINE * 20, **NO_SHARES)
    data = corpus(LINE.upper() * 20, **NO_SHARES)
    assert target_text(data, data.train_set.windows) == (LINE.upper() * 20)[1:]


def test_what_a_failure_leaves_is_no_cache(corpus, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(token_cache, "_encode", fail)
    with pytest.raises(RuntimeError, match="killed"):
        corpus(LINE)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_another_process_finished_first_stays(tmp_path):
    folder = tmp_path / "cache"

    def pieces():
        yield Piece("abc", True, True, 1.0, "text")
        folder.mkdir()
        (folder / "theirs").touch()

    write_cache(folder, pieces(), character_tokenizer("abc"))
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "theirs"]


def test_a_few_steps_of_sft_run_on_windows(corpus, tmp_path, tokenizer_folder):
    spec = tiny_spec()
    spec.tokenizer = tokenizer_folder
    module = SFT(spec, evaluation=Evaluation(max_new_tokens=0))
    path = tmp_path / "text.txt"
    path.write_text(LINE * 100)
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=1)
    trainer.fit(module, Corpus(str(path), window=32, cache_folder=str(tmp_path), batch_size=4))
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["loss"])


def test_the_targets_of_a_window_are_those_that_sft_learns(corpus):
    data = corpus("abcdefghijkl", window=6, context_tokens=2, **NO_SHARES)
    batch = collate(data.tokenizer, [data.train_set[1]])
    rows = TokenBatch.from_prompts(batch, 0, completion_only=True)
    assert text_of(data, rows.ids[rows.target]) == "ghij"


# --- what is wrong with it -------------------------------------------------------------------------------------------


def read(path):
    """All texts of a file."""
    return [piece.text for piece in read_source(find_source(str(path), "text")[0], "text")]


def test_bytes_that_are_not_text_are_reported_with_file_and_offset(tmp_path, monkeypatch):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"line one\nna\xefve")
    with pytest.raises(ValueError, match=r"latin\.txt: byte 11 is not UTF-8"):
        read(path)
    monkeypatch.setattr("lit_rl.datamodules.documents.PIECE_BYTES", 8)
    path.write_bytes(b"line one\nline two\nna\xefve")
    with pytest.raises(ValueError, match="byte 20 is not UTF-8"):
        read(path)


def test_a_malformed_line_is_reported_by_its_number(tmp_path):
    faults = {
        "{broken": "not JSON",
        '{"other": "x"}': "field 'text' is missing",
        '["text"]': "a list, not an object",
        '{"text": 3}': "field 'text' is of type int; write str",
        r'{"text": "a\ud83d"}': r"field 'text' holds half a character \(\\ud83d, a lone surrogate\) at character 2",
    }
    for line, message in faults.items():
        path = write_jsonl(tmp_path / "lines.jsonl", [{"text": LINE}, "", line])
        with pytest.raises(ValueError, match=rf"lines\.jsonl, line 3: {message}[^\n]*data\.field"):
            read(path)


def test_a_character_that_the_tokenizer_lacks_is_an_error_with_the_file(corpus):
    with pytest.raises(ValueError, match=r"text\.txt: the tokenizer cannot encode"):
        corpus("日本")


def test_an_empty_corpus_is_an_error(corpus):
    with pytest.raises(ValueError, match="the corpus is empty"):
        corpus("")


def test_a_path_without_text_is_an_error_of_one_line(tmp_path):
    (tmp_path / "nothing").mkdir()
    for path, message in ((tmp_path / "nothing", "is empty; give one"), ("/no/such/file", "does not exist; give")):
        with pytest.raises(ValueError, match=rf"^data\.path: [^\n]*{message}[^\n]*$"):
            read(path)


def test_a_set_without_text_is_an_error(corpus, tmp_path):
    with pytest.raises(ValueError, match="leaves no text for the"):
        corpus(json_lines(tmp_path / "two.jsonl", [LINE, "x" + LINE]), val_share=0.01)


def test_a_window_above_the_models_positions_is_an_error(corpus):
    with pytest.raises(ValueError, match=r"data\.window is 16385, but the model has 16384 positions"):
        corpus(LINE * 20, window=16385)


def test_options_that_make_no_windows_are_refused():
    for options, message in (
        ({"window": 1}, "data.window is 1"),
        ({"context_tokens": 0}, "data.context_tokens is 0"),
        ({"context_tokens": 512}, "data.context_tokens is 512"),
        ({"stride": -1}, "data.stride is -1"),
        ({"val_share": 0.5, "test_share": 0.5}, "together less than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Corpus("text.txt", **options)


def test_tinyshakespeare_comes_back_whole(corpus):
    path = Path(real_file("tinyshakespeare.txt"))
    data = corpus(path, window=128, context_tokens=32)
    characters = np.array(data.tokenizer.convert_ids_to_tokens(list(range(len(data.tokenizer)))))
    assert "".join(characters[data.train_set.windows.ids]) == path.read_text(encoding="utf-8")
    windows = [getattr(data, name).windows for name in ("train_set", "val_set", "test_set")]
    assert sum(each.num_targets for each in windows) == path.stat().st_size - 3
