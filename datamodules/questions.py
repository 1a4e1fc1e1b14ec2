"""How a problem is put to a policy: as text, or as a user's turn in its tokenizer's chat template."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def ask(question: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """The prompt of a question, special tokens written out.

    Args:
        question: what is asked, with what the answer should look like.
        tokenizer: the policy's.
        chat: use its chat template, where it has one.
    """
    if chat and tokenizer.chat_template:
        message = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    return f"{_opening(tokenizer)}{question}\n"


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that this tokenizer puts before every text, if it does: batches are tokenized without it."""
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""
