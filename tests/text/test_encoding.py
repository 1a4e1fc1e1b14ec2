"""Encoding: how a text begins, and the border between a prompt and its completion, for tokenizers of all kinds."""

import pytest
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from vocabularies import KINDS, ids_of, spaced

from lit_rl.tasks.tokenizers import arithmetic_tokenizer, rpn_tokenizer
from lit_rl.text.encoding import bos, check_prompt, encode, encode_inside, encode_pairs, puts_space


def tokens(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
def test_a_completion_gets_no_space_of_its_own(kind):
    tokenizer = spaced(kind)
    (prompt,), (completion,) = encode_pairs(["Say:"], ["time"], tokenizer)
    assert tokens(tokenizer, prompt) == ["▁Say", ":"]
    assert tokens(tokenizer, completion) == [*"time"]
    assert tokens(tokenizer, encode_pairs(["Say:"], [" time"], tokenizer)[1][0]) == ["▁time"]


@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
def test_of_a_token_that_spans_the_border_the_prompt_keeps_its_own_part(kind):
    # As one text it is `▁Say`, `▁the`; the policy is prompted with `▁Say`, `▁`.
    tokenizer = spaced(kind)
    (prompt,), (completion,) = encode_pairs(["Say "], ["the"], tokenizer)
    assert tokens(tokenizer, prompt) == ["▁Say", "▁"]
    assert tokens(tokenizer, completion) == [*"the"]


def test_other_tokenizers_encode_a_completion_by_itself():
    prompts, completions = ["the sum 4", "time", "x "], ["2 again", " after", "y"]
    for make in (KINDS["byte-level"], KINDS["characters"], arithmetic_tokenizer):
        tokenizer = make()
        assert not puts_space(tokenizer)
        expected = [[ids_of(tokenizer, text) for text in texts] for texts in (prompts, completions)]
        assert list(encode_pairs(prompts, completions, tokenizer)) == expected
    tokenizer = rpn_tokenizer(13)  # joined without a space, two words would be a word that it lacks
    assert encode_pairs(["<boe> 2 3 +"], ["= 5"], tokenizer) == ([ids_of(tokenizer, "<boe> 2 3 +")], [ids_of(tokenizer, "= 5")])


def test_a_byte_level_tokenizer_may_put_a_space_too():
    tokenizer = KINDS["byte-level"]()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokens(tokenizer, encode_inside("time", tokenizer))[0][0] == "t"
    assert tokens(tokenizer, encode_pairs(["4"], ["time"], tokenizer)[1][0])[0][0] == "t"


def test_an_empty_completion_has_no_tokens():
    assert encode_pairs(["Say:"], [""], spaced("first"))[1] == [[]]


# --- the beginning -------------------------------------------------------------------------------------------------------


def test_a_text_gets_bos_once_if_the_tokenizer_puts_it():
    for kind in ("prepend", "first"):
        tokenizer = spaced(kind, puts_bos=True)
        for text in ("Say:", "<s>Say:"):
            assert (
                tokens(tokenizer, encode([text], tokenizer)[0])
                == ["<s>", "▁Say", ":"]
                == tokens(tokenizer, tokenizer("Say:")["input_ids"])
            )


def test_a_text_that_writes_its_special_tokens_out_stays_as_it_is():
    tokenizer = spaced("first", puts_bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    assert tokens(tokenizer, encode(["<|user|>Say"], tokenizer)[0])[0] == "<|user|>"


def test_a_tokenizer_that_puts_nothing_before_a_text_has_no_bos():
    for make in (*KINDS.values(), arithmetic_tokenizer, lambda: rpn_tokenizer(13), lambda: spaced("first")):
        assert bos(make()) == []
    ended = spaced("first")  # one token begins and ends texts, and this tokenizer writes the end
    ended.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ended.bos_token = "</s>"
    assert bos(ended) == []


def test_a_prompt_without_tokens_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"^sample 7 has a prompt of 0 tokens"):
        check_prompt(7, [])
