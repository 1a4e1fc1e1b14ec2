"""Collation: tokens of prompts and completions, their end, and samples of both kinds in one batch."""

import pytest
from vocabularies import CHATML, byte_level, chatting, spaced

from lit_rl.datamodules.base import collate
from lit_rl.datamodules.positions import windows_of_samples
from lit_rl.text.chat import ask
from lit_rl.types import Sample


def rows_of(batch) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(batch.ids, batch.mask, strict=True)]


def test_a_completion_goes_on_after_its_prompt_without_a_space():
    tokenizer = spaced("first")
    batch = collate(tokenizer, [Sample("Say:", "time", "", 0)])
    assert tokenizer.convert_ids_to_tokens(batch.completions[0]) == [*"time", "</s>"]


def test_positions_of_a_solution_have_no_space_before_the_first_token():
    tokenizer = spaced("prepend")
    windows = windows_of_samples("train_set", [Sample("Say:", "time", "", 0)], tokenizer)
    assert tokenizer.convert_ids_to_tokens(windows.tokens(0)) == ["▁Say", ":", *"time"]


def test_prompts_of_texts_and_of_positions_begin_with_bos():
    tokenizer, sample = spaced("first", puts_bos=True), Sample("Say:", "time", "", 0)
    assert rows_of(collate(tokenizer, [sample]))[0][0] == tokenizer.bos_token_id
    assert windows_of_samples("train_set", [sample], tokenizer).tokens(0)[0] == tokenizer.bos_token_id


def test_a_completion_ends_as_its_prompt_was_asked():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    asked = [Sample(ask("How many?", tokenizer, chat), "4", "4", 0) for chat in (True, False)]
    ends = [completion[-1] for completion in collate(tokenizer, asked).completions]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<eos>"]


def test_each_sample_of_a_batch_is_read_by_its_own_kind():
    tokenizer = byte_level()
    text, position = Sample("4", "time", "", 0), Sample("", "", "", 1, [5, 6], [7])
    (alone,) = rows_of(collate(tokenizer, [text]))
    for samples in ([text, position], [position, text]):
        batch = collate(tokenizer, samples)
        rows = {
            sample.number: (row, done) for sample, row, done in zip(samples, rows_of(batch), batch.completions, strict=True)
        }
        assert rows[0] == (alone, collate(tokenizer, [text]).completions[0])
        assert rows[1] == ([5, 6], [7])


def test_a_prompt_without_tokens_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"^sample 7 has a prompt of 0 tokens"):
        collate(byte_level(), [Sample("4", "", "", 6), Sample("", "", "", 7)])
