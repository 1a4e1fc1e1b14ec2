"""Chat templates: what a plain prompt begins with, and the token that ends the assistant's turn."""

import pytest
from vocabularies import CHATML, byte_level, characters, chatting, spaced

from lit_rl.text.chat import AssistantTurn, ask, user_turn, with_style

LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


def test_the_first_special_token_after_the_answer_ends_a_turn():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    turn = AssistantTurn.of(tokenizer)
    assert turn.end == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    assert turn.opening == "<|im_end|>\n<|im_start|>assistant\n"
    assert user_turn("How are you?", tokenizer).endswith(turn.opening)


def test_a_template_may_end_turns_by_the_tokenizers_own_end():
    tokenizer = spaced("first")
    tokenizer.chat_template = LLAMA
    assert AssistantTurn.of(tokenizer).end == tokenizer.eos_token_id


def test_without_a_special_token_after_the_answer_no_token_ends_a_turn():
    assert AssistantTurn.of(chatting(CHATML)) is None  # its marks are plain text to this tokenizer
    assert AssistantTurn.of(chatting("{{ raise_exception('only tools') }}")) is None
    assert AssistantTurn.of(byte_level()) is None


def test_a_plain_prompt_begins_with_bos_if_the_tokenizer_puts_it():
    assert ask("Say", spaced("first", puts_bos=True), chat=True) == "<s>Say\n"
    for tokenizer in (spaced("first"), characters()):
        assert ask("Say", tokenizer, chat=True) == "Say\n"


REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
DROPS_SYSTEM = LLAMA.replace("{% else %}", "{% elif m.role == 'assistant' %}")


def styled(tokenizer, style="Be brief."):
    prompt = ask("How many are 2 apples?\n\nEnd with #### <number>.", tokenizer, chat=True)
    return with_style(prompt, "How many are 2 apples?", style, tokenizer)


def test_a_style_stands_in_the_system_turn_and_the_instruction_stays():
    assert styled(chatting(CHATML)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow many are 2 apples?\n\nEnd with #### <number>.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_style_stands_before_the_question_if_the_template_has_no_system_turn():
    asked = "Be brief.\n\nHow many are 2 apples?\n\nEnd with #### <number>."
    assert styled(chatting(REFUSES_SYSTEM)) == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    assert styled(chatting(DROPS_SYSTEM)) == f"[INST] {asked} [/INST]"
    assert styled(byte_level()) == f"{asked}\n"


def test_a_style_stands_before_the_question_of_a_prompt_that_the_template_did_not_write():
    assert with_style("Q: 1+1?\nA:", "1+1?", "Be brief.", chatting(CHATML)) == "Q: Be brief.\n\n1+1?\nA:"


def test_an_empty_style_leaves_a_prompt_as_it_is():
    assert with_style("anything", "1+1?", "", chatting(CHATML)) == "anything"


def test_a_prompt_without_its_question_gets_no_style():
    with pytest.raises(ValueError, match=r"the prompt 'Say' does not hold its question '1\+1\?'"):
        with_style("Say", "1+1?", "Be brief.", byte_level())
