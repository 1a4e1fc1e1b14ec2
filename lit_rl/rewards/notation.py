r"""Notation around an answer that changes no value: dollar signs, full stops, thousands, and the thought before it."""

from __future__ import annotations

import re

OPENED, ENDED = "<think>", "</think>"
# `10{,}000`, `10\,000` and `10,\!000`. Plain commas are left to the readers, which know lists.
_THOUSANDS = re.compile(r"(?<![\d.])[0-9]{1,3}(?:(?:\{,\}|,?\\[,;:! ]|~)[0-9]{3})+(?![0-9])")
# In a formula two numbers side by side are a product to math-verify, which makes 0 of `10 000`.
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")


def after_thought(text: str, prompt: str = "") -> str | None:
    """Text after the last end of a thought, all of it without thoughts; None if a thought is opened and never ended.

    Args:
        text: a completion.
        prompt: its prompt, which may open the thought.
    """
    _, ended, rest = text.rpartition(ENDED)
    # A prompt of a reasoning model ends with the opening, which is then no part of the completion.
    opened_by_prompt = not ended and prompt.rstrip().endswith(OPENED)
    return None if opened_by_prompt or OPENED in rest else rest


def join_thousands(text: str) -> str:
    r"""Numbers without the LaTeX between their thousands: ``10{,}000`` and ``10\,000`` become 10000."""
    return _THOUSANDS.sub(lambda match: re.sub("[^0-9]", "", match[0]), text)


def bare_formula(text: str) -> str:
    """Formula without dollar signs around it, the punctuation of the sentence after it, and marks between thousands."""
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), join_thousands(text))
    text = re.sub(r"(?<!\\)\$", "", text).strip()
    return text.rstrip(".,;: \n") or text
