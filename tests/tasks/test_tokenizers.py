from random import Random

import pytest

from lit_rl.tasks.infix import OPERATORS, Grammar
from lit_rl.tasks.problems import ArithmeticProblems
from lit_rl.tasks.tokenizers import arithmetic_tokenizer, character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return arithmetic_tokenizer()


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_control_tokens_are_the_first_ids(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_ids_run_over_special_tokens_then_characters():
    tokenizer = character_tokenizer("ab", ["<x>"])
    assert ids(tokenizer, "<eos><x>ba") == [2, 3, 5, 4]


def test_vocabulary_has_no_gaps(tokenizer):
    # 3 control tokens, 4 special ones, 10 digits, 10 signs with the space, 26 letters.
    assert sorted(tokenizer.get_vocab().values()) == list(range(53))
    assert len(tokenizer) == 53


def test_nothing_is_added_to_a_text(tokenizer):
    assert len(ids(tokenizer, "12+34")) == 5


def test_text_survives_with_its_spaces(tokenizer):
    text = "<bos><little> max ( 1 ,-2 )+ 3  <scratchpad>1=1 , 2<answer> -12/7 <eos><pad>"
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_special_tokens_can_be_left_out(tokenizer):
    assert tokenizer.decode(ids(tokenizer, "<bos><big>1 + 2<answer>3<eos>"), skip_special_tokens=True) == "1 + 23"


def test_every_problem_survives(tokenizer):
    grammar = Grammar(OPERATORS, max_depth=3, spaces=0.25, parentheses=0.15)
    problems = ArithmeticProblems(grammar, 200, 0, "little", "columns")
    texts = [sample.prompt + sample.completion for sample in problems]
    assert tokenizer.batch_decode([ids(tokenizer, text) for text in texts]) == texts


def test_random_characters_survive(tokenizer):
    rng = Random(0)
    characters = [token for token in tokenizer.get_vocab() if len(token) == 1]
    texts = ["".join(rng.choices(characters, k=30)) for _ in range(300)]
    assert tokenizer.batch_decode([ids(tokenizer, text) for text in texts]) == texts


def test_unknown_character_raises(tokenizer):
    for text in ("12.5", "A", "1\n2", "\u0663", "<unknown>"):
        with pytest.raises(Exception, match=r"Missing .* token from the vocabulary"):
            tokenizer(text)


def test_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<bos><big> 12 -- 3<answer>15<eos>"
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.all_special_ids == tokenizer.all_special_ids
    assert ids(loaded, text) == ids(tokenizer, text)
    assert loaded.decode(ids(loaded, text)) == text
    assert list(loaded(text)) == ["input_ids", "attention_mask"]


def test_repeated_or_empty_tokens_are_refused():
    for characters, special in [("aa", ()), ("a", ("<pad>",)), ("a", ("a",)), ("a", ("",))]:
        with pytest.raises(ValueError, match="name each token once"):
            character_tokenizer(characters, special)
