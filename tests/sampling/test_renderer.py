"""Renderers: prompts as they are shown, texts without a template, and completions as text."""

import pytest
import torch
from tiny_rollouts import prompts_of, rollouts_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import spaced

from lit_rl.sampling import Renderer
from lit_rl.sampling.position_renderer import PositionRenderer
from lit_rl.tasks.tokenizers import arithmetic_tokenizer, byte_tokenizer
from lit_rl.types import PromptBatch, Sample


def position(tokenizer, context: str, target: str, number: int = 0) -> Sample:
    """A position of a text, given as the text before and after it."""
    ids, follows = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, target))
    return Sample("", "", target, number, ids, follows)


def batch_of(*samples: Sample) -> PromptBatch:
    """Samples with the tokens after each position as completions; the prompts' own ids play no part."""
    return PromptBatch.pad([[1] for _ in samples], [list(sample.target) for sample in samples], list(samples), pad_id=0)


def rows_of(prompts: PromptBatch) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(prompts.ids, prompts.mask, strict=True)]


# --- of ordinary prompts -----------------------------------------------------------------------------------------


def test_ordinary_prompts_are_shown_as_the_data_give_them():
    renderer, prompts = Renderer(arithmetic_tokenizer()), prompts_of([4, 5, 6], [7])
    assert renderer.render(prompts) is prompts
    assert renderer.plain(prompts) is prompts


def test_special_tokens_are_written_out_and_the_end_token_is_left_out():
    tokenizer = arithmetic_tokenizer()
    row = tokenizer("<bos>1 2", add_special_tokens=False)["input_ids"]
    prompts = prompts_of([4])
    ended = rollouts_of(prompts, 2, [[*row, tokenizer.eos_token_id], row], truncated=torch.tensor([False, True]))
    text = tokenizer.decode(row)
    assert text.startswith("<bos>1")
    assert Renderer(tokenizer).decode(ended) == [text, text]


def test_rows_are_filled_up_with_the_tokenizers_padding():
    tokenizer = arithmetic_tokenizer()
    assert Renderer(tokenizer).pad_id == tokenizer.pad_token_id


# --- of positions: prompts ---------------------------------------------------------------------------------------


def test_a_template_is_put_around_the_text_before_a_position():
    tokenizer = byte_tokenizer()
    renderer = PositionRenderer(tokenizer, "Go on: {context}!", max_context=0)
    prompts = renderer.render(batch_of(position(tokenizer, "one two", " three"), position(tokenizer, "a", "b")))
    assert [sample.prompt for sample in prompts.samples] == ["Go on: one two!", "Go on: a!"]
    assert rows_of(prompts) == [tokenizer(sample.prompt)["input_ids"] for sample in prompts.samples]
    assert prompts.completions == [tokenizer(" three")["input_ids"], tokenizer("b")["input_ids"]]


def test_the_chat_template_of_a_tokenizer_goes_around_the_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>"
    prompts = PositionRenderer(tokenizer, "Go on: {context}", 0).render(batch_of(position(tokenizer, "one", "two")))
    assert prompts.samples[0].prompt == "[user]Go on: one[assistant]<think>"


def test_no_more_than_max_context_tokens_are_shown():
    tokenizer = byte_tokenizer()
    batch = batch_of(position(tokenizer, "12345", "6"))
    shown = [PositionRenderer(tokenizer, "{context}?", size).render(batch).samples[0].prompt for size in (0, 3, 9)]
    assert shown == ["12345?", "345?", "12345?"]
    assert rows_of(PositionRenderer(tokenizer, "{context}?", 3).plain(batch)) == [tokenizer("345")["input_ids"]]


def test_plain_prompts_are_the_tokens_before_a_position_without_the_template():
    tokenizer = byte_tokenizer()
    batch = batch_of(position(tokenizer, "one two", " three"), position(tokenizer, "a", "b"))
    plain = PositionRenderer(tokenizer, "Go on: {context}", 0).plain(batch)
    assert rows_of(plain) == [tokenizer("one two")["input_ids"], tokenizer("a")["input_ids"]]
    assert plain.completions == batch.completions
    assert plain.samples == batch.samples


def test_without_reasoning_the_tokens_of_the_text_stay_as_they_are():
    # "ab" is one token in the vocabulary, but the text has it as two.
    merged = Tokenizer(models.BPE(vocab={"<eos>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    merged.pre_tokenizer, merged.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, eos_token="<eos>", pad_token="<eos>")
    assert tokenizer("ab")["input_ids"] == [3]
    prompts = PositionRenderer(tokenizer, "direct", 0).render(batch_of(Sample("", "", "b", 0, [1, 2], [2])))
    assert rows_of(prompts) == [[1, 2]]
    assert prompts.samples[0].prompt == "ab"


def test_positions_begin_with_bos_once_whatever_is_cut_and_whoever_writes_it():
    tokenizer = spaced("first", puts_bos=True)
    begin = tokenizer.bos_token_id
    context, target = tokenizer("Say: time time")["input_ids"], tokenizer("the")["input_ids"][1:]
    batch = batch_of(Sample("", "", "", 0, context, target))
    for template in ("direct", "Say: {context}"):
        for size in (0, 2):
            renderer = PositionRenderer(tokenizer, template, size)
            for (row,) in (rows_of(renderer.render(batch)), rows_of(renderer.plain(batch))):
                assert row[0] == begin
                assert row.count(begin) == 1
    assert rows_of(PositionRenderer(tokenizer, "direct", 2).plain(batch)) == [[begin, *context[-2:]]]
    assert "<s>" not in PositionRenderer(tokenizer, "Say: {context}", 0).render(batch).samples[0].prompt
    tokenizer.chat_template = "<s>{{ messages[0].content }}:"
    (row,) = rows_of(PositionRenderer(tokenizer, "Say: {context}", 0).render(batch))
    assert (row[0], row.count(begin)) == (begin, 1)


def test_a_sample_that_is_not_a_position_is_refused():
    renderer = PositionRenderer(byte_tokenizer(), "direct", 0)
    for show in (renderer.render, renderer.plain):
        with pytest.raises(ValueError, match=r"sample 7 is not a position of a text; .*data\.init_args\.positions"):
            show(batch_of(Sample("1+1", "2", "2", 7)))


def test_a_text_without_a_place_for_the_context_is_not_a_template():
    with pytest.raises(ValueError, match=r"model\.template is .*\{context\} once"):
        PositionRenderer(byte_tokenizer(), "no place for it", 0)


# --- of positions: completions -----------------------------------------------------------------------------------


def decoded(rows: list[list[int]], truncated: bool) -> list[bytes]:
    rollouts = rollouts_of(prompts_of([5]), len(rows), rows, truncated=torch.tensor([truncated] * len(rows)))
    texts = PositionRenderer(byte_tokenizer(), "direct", 0).decode(rollouts)
    return [text.encode("utf-8", "surrogateescape") for text in texts]


def test_completions_are_decoded_byte_for_byte():
    tokenizer = byte_tokenizer()
    ids = tokenizer("é!")["input_ids"]  # C3 A9 21
    assert decoded([ids[1:], ids, ids[:1]], truncated=True) == [b"\xa9!", "é!".encode(), b"\xc3"]
    assert decoded([[*ids, tokenizer.eos_token_id]], truncated=False) == ["é!".encode()]


def test_ids_beyond_the_tokenizer_are_not_text():
    tokenizer = byte_tokenizer()
    (letter,) = tokenizer("a")["input_ids"]
    first = max(tokenizer.get_vocab().values()) + 1
    assert decoded([[letter, first, letter], [first + 7, letter, letter]], truncated=True) == [b"aa", b"aa"]
