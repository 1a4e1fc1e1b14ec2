"""Encoding of texts as token ids: how a text begins, and where a prompt ends and its completion begins.

Two rules hold for every text that a model reads.

**Beginning.** A tokenizer may put a token before every text (BOS, as Llama 3 and Gemma do). A text gets it once. A text that
begins with a special token has its special tokens written out, as chat templates do, and stays as it is.

**Border.** The tokens of a prompt are its own, whatever follows, since the policy is prompted with them. A completion goes on
after them. Some tokenizers put a space before the first word of a text (SentencePiece's dummy prefix: Llama 2, Mistral, Phi-3),
which a completion must not get: prompt and completion are encoded as one text and cut after the prompt's tokens. If a token
of that text spans the border, the completion is encoded by itself, in the middle of a text. Other tokenizers encode a
completion alike after any prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", ".", "0")
"""Texts after which another text is encoded as in the middle of a text; one of them does not melt into what follows."""


def bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token that the tokenizer itself puts before every text; empty if it puts none."""
    # A tokenizer may have such a token and never put it, as GPT-2's does.
    # The empty text comes first: a tokenizer of few characters or words encodes no other text for certain.
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id not in tokenizer("")["input_ids"]:
        return []
    # The token may be an end token too, which some tokenizers put after a text.
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts that a model reads from their beginning."""
    opening = bos(tokenizer)
    if not opening:
        return encode_bare(texts, tokenizer)
    written = str(tokenizer.bos_token)
    # Without the token that is written out: the text after it is the beginning of a text too, with a space before it or not.
    rows = encode_bare([text.removeprefix(written) for text in texts], tokenizer)
    added = tokenizer.added_tokens_decoder
    return [
        row if row and row[0] in added and added[row[0]].special and not text.startswith(written) else opening + row
        for row, text in zip(rows, texts, strict=True)
    ]


def check_prompt(number: int, ids: Sequence[int]) -> None:
    """Refuse a prompt without tokens: nothing would predict the first token that follows it.

    Args:
        number: the sample's number, for the message.
        ids: token ids of its prompt.

    Raises:
        ValueError: for an empty prompt.
    """
    if not len(ids):
        raise ValueError(
            f"sample {number} has a prompt of 0 tokens, after which no token can be predicted; write a prompt, or leave it out."
        )


def encode_pairs(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts, and of the completions that follow them."""
    heads = encode(prompts, tokenizer)
    if not puts_space(tokenizer):
        return heads, encode_bare(completions, tokenizer)
    wholes = encode([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)], tokenizer)
    tails = [
        whole[len(head) :] if whole[: len(head)] == head else encode_inside(completion, tokenizer)
        for head, whole, completion in zip(heads, wholes, completions, strict=True)
    ]
    return heads, tails


def encode_inside(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text in the middle of another text.

    Raises:
        ValueError: if the tokenizer joins its first characters with whatever stands before them.
    """
    if not puts_space(tokenizer):
        return encode_bare([text], tokenizer)[0]
    for anchor in ANCHORS:
        before, both = encode_bare([anchor, anchor + text], tokenizer)
        if both[: len(before)] == before:
            return both[len(before) :]
    raise ValueError(f"the tokenizer joins the beginning of {text[:40]!r} with the text before it.")


def encode_bare(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts without any token that the tokenizer puts around a text.

    Raises:
        ValueError: for a text that the tokenizer cannot write, with the characters (or words) that it lacks.
    """
    try:
        # Not verbose: it would warn of texts longer than the model's positions.
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    except Exception as error:  # tokenizers raises its own types, which it does not export
        if not (lacking := _lacking(texts, tokenizer)):
            raise
        shown = ", ".join(map(repr, lacking[:10])) + (" and others" if len(lacking) > 10 else "")
        raise ValueError(
            f"the tokenizer has no token for {shown}; choose a tokenizer that writes the data, for example bytes."
        ) from error


def _lacking(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Parts of texts that have no token, for a tokenizer of whole characters or words."""
    parts: set[str] = set()
    for text in texts:
        for written in tokenizer.get_added_vocab():
            text = text.replace(written, "")
        parts.update(part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return sorted(parts - tokenizer.get_vocab().keys())


def puts_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before the first word of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: taken for SentencePiece, whose default it is
        return True
    # Tried out, since normalizers and pre-tokenizers of several kinds do it, each by options of its own.
    text = backend.normalizer.normalize_str("a") if backend.normalizer else "a"
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, (0, 1))]
    return words[0][0] != "a"
