"""Chat template: questions as a user's turn for policies that chat, as plain text for others."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def user_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text as the user's turn of the chat template, open for the answer; unchanged if the tokenizer has no template."""
    if not tokenizer.chat_template:
        return text
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def ask(question: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Prompt of a question, special tokens written out.

    Args:
        question: the question, with the form that the answer should have.
        tokenizer: the policy's tokenizer.
        chat: whether to use the chat template, if the tokenizer has one.
    """
    if chat and tokenizer.chat_template:
        return user_turn(question, tokenizer)
    return f"{_opening(tokenizer)}{question}\n"


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """Token that this tokenizer puts before every text; empty without one."""
    # Batches are tokenized without special tokens, so a plain prompt must write this one out.
    # Tried out: a tokenizer may have a first token and never write it, as GPT-2's does.
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""
