"""Bytes of tokens, for the three kinds of vocabulary that say them, and their way into a reference and back."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import KINDS, LINES, byte_level, characters, ids_of, pieces_of, sentencepiece

from lit_rl.text.token_bytes import read_pieces, token_bytes, write_pieces

# --- the three kinds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text(kind):
    tokenizer = KINDS[kind]()
    table = token_bytes(tokenizer)
    for text in (*LINES, "time", " 日é🎉 ", "é", "{\n\n}"):
        space = b" " if kind == "sentencepiece" and not text.startswith(" ") else b""  # its own, before the first word
        assert b"".join(table[token] for token in ids_of(tokenizer, text)) == space + text.encode(), text


def test_a_character_that_byte_level_bpe_splits_is_whole_only_in_all_its_tokens():
    pieces = pieces_of(byte_level(), "ÿ")
    assert pieces == [b"\xc3", b"\xbf"]


def test_a_space_of_byte_level_bpe_belongs_to_the_token_behind_it():
    assert pieces_of(byte_level(), "x time")[-1] == b" time"


def test_sentencepiece_writes_unknown_characters_byte_by_byte():
    assert pieces_of(sentencepiece(), "日")[-3:] == [b"\xe6", b"\x97", b"\xa5"]


def test_sentencepiece_writes_spaces_as_spaces():
    assert pieces_of(sentencepiece(), "time time") == [b" time", b" time"]


def test_a_character_is_its_own_bytes():
    assert pieces_of(characters(), "é =") == [b"\xc3\xa9", b" ", b"="]


def test_every_single_byte_is_the_bytes_of_one_token_at_least():
    for build in (byte_level, sentencepiece):
        assert {bytes([byte]) for byte in range(256)} <= set(token_bytes(build()))


def test_all_tokens_that_byte_level_bpe_learned_decode_to_their_bytes():
    tokenizer = byte_level()
    decoded = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in range(len(tokenizer))]
    assert [piece.decode("utf-8", "replace") for piece in token_bytes(tokenizer)] == decoded


# --- tokens apart ------------------------------------------------------------------------------------------------


def test_special_tokens_are_their_text():
    for kind, token in [("byte-level", "<eos>"), ("sentencepiece", "</s>"), ("characters", "<answer>")]:
        tokenizer = KINDS[kind]()
        assert token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids(token)] == token.encode(), kind


def test_an_added_token_of_byte_level_bpe_is_written_as_it_is():
    tokenizer = byte_level()
    tokenizer.add_tokens(["é→"])
    assert token_bytes(tokenizer)[-1] == "é→".encode()


def test_an_added_run_of_spaces_of_sentencepiece_is_spaces():
    tokenizer = sentencepiece(AddedToken("▁▁▁", normalized=False))
    assert token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids("▁▁▁")] == b"   "


def test_a_hole_in_the_vocabulary_stands_for_no_bytes_and_moves_no_other_token():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 5}))
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"a", b"", b"", b"", b"", b"b"]


# --- refused -----------------------------------------------------------------------------------------------------


def test_wordpiece_is_refused_with_the_reason():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "time": 1, "##s": 2}, unk_token="[UNK]"))
    backend.normalizer, backend.decoder = normalizers.Lowercase(), decoders.WordPiece()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="do not say which spaces stand before them"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_words_whose_ends_are_marked_instead_of_their_spaces_are_refused():
    backend = Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    with pytest.raises(ValueError, match="do not say which spaces stand before them"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_words_that_were_split_at_white_space_are_refused():
    backend = Tokenizer(models.WordLevel({"time": 0, "again": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="do not say which spaces stand before them"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


# --- references --------------------------------------------------------------------------------------------------


def test_all_byte_values_come_back_from_a_reference():
    single = [bytes([byte]) for byte in range(256)]
    assert read_pieces(write_pieces(single)) == single
    assert read_pieces(write_pieces([bytes(range(256)), b"", b"\n"])) == [bytes(range(256)), b"", b"\n"]


def test_a_reference_shows_plain_text_readably():
    assert write_pieces([b" time", b" and"]) == " time│ and"


def test_no_tokens_are_an_empty_reference():
    assert write_pieces([]) == ""
    assert read_pieces("") == []


def test_the_separators_own_bytes_are_no_separator():
    assert read_pieces(write_pieces(["│".encode(), b"a"])) == ["│".encode(), b"a"]


def test_a_reference_that_holds_no_pieces_is_refused_with_what_to_set():
    with pytest.raises(ValueError, match=r"'日本' holds no tokens of a text; RPT needs positions: set `positions`"):
        read_pieces("日本")
