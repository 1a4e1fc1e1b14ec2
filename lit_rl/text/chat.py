"""Questions in the form that a policy reads: plain text, or a user's turn in its tokenizer's chat template."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def user_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text as the user's turn of the chat template, open for the answer; the text itself without a template."""
    if not tokenizer.chat_template:
        return text
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def ask(question: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Prompt of a question, special tokens written out.

    Args:
        question: the question, with the form that the answer should have.
        tokenizer: the policy's.
        chat: use its chat template, if it has one.
    """
    if chat and tokenizer.chat_template:
        return user_turn(question, tokenizer)
    return f"{_opening(tokenizer)}{question}\n"


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that this tokenizer puts before every text, if any: batches are tokenized without it."""
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""
