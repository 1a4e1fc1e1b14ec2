"""Chat templates: what a plain prompt begins with, and the token that ends the assistant's turn."""

from vocabularies import CHATML, byte_level, characters, chatting, spaced

from lit_rl.text.chat import AssistantTurn, ask, user_turn

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
