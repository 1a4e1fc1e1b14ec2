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


def with_style(prompt: str, question: str, style: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Prompt of the data with a text that says how to answer: in a system turn, or before the question.

    A prompt that the chat template wrote is written again with a system turn, if the template has one. All else of the prompt
    stays, and so the form of the answer that the data ask for.

    Args:
        prompt: the prompt.
        question: the bare question in it.
        style: the text; the prompt is returned as it is if it is empty.
        tokenizer: the policy's tokenizer.

    Raises:
        ValueError: if the prompt does not hold the question.
    """
    if not style:
        return prompt
    opening, _, closing = user_turn(QUESTION, tokenizer).partition(QUESTION)
    if tokenizer.chat_template and prompt.startswith(opening) and prompt.endswith(closing):
        turns = [
            {"role": "system", "content": style},
            {"role": "user", "content": prompt[len(opening) : len(prompt) - len(closing)]},
        ]
        try:
            written = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError:  # a template's way to refuse a system turn
            written = ""
        if style in written:  # other templates leave a system turn out
            return written
    before, found, after = prompt.partition(question)
    if not found:
        raise ValueError(f"the prompt {prompt[:60]!r} does not hold its question {question[:60]!r}.")
    return f"{before}{style}\n\n{question}{after}"


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
