"""Chat template: questions as a user's turn for policies that chat, as plain text for others."""

from __future__ import annotations

from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lit_rl.text.encoding import bos, encode_bare

QUESTION, ANSWER = "How many are two and two?", "Two and two are four."
"""Turns of a conversation that a chat template writes for trial."""


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
    return f"{tokenizer.bos_token if bos(tokenizer) else ''}{question}\n"


class AssistantTurn(NamedTuple):
    """The assistant's turn, as a chat template begins and ends it."""

    opening: str
    """Text between the user's question and the answer; a prompt ends with it if the template wrote it."""
    end: int
    """Token that ends the turn."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> AssistantTurn | None:
        """The turn that a tokenizer's chat template writes; None without a template, or if no special token ends it."""
        if not tokenizer.chat_template:
            return None
        try:
            opening = user_turn(QUESTION, tokenizer).rpartition(QUESTION)[2]
            turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
            closing = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(ANSWER)[2]
        except TemplateError:  # a template may refuse a conversation; it then says so where it is used
            return None
        added = tokenizer.added_tokens_decoder
        (ids,) = encode_bare([closing], tokenizer)
        ends = [token for token in ids if token in added and added[token].special]
        return cls(opening, ends[0]) if ends else None
