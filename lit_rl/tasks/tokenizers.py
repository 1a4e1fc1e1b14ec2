"""Tokenizers of models that are trained from scratch on a task: one token per character, byte or word."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_rl.tasks.rpn import BEGIN, END, vocabulary
from lit_rl.tasks.stories import story_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CONTROL_TOKENS = ("<pad>", "<bos>", "<eos>")


def character_tokenizer(characters: str, special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per character.

    The ids run over ``<pad>``, ``<bos>``, ``<eos>``, the special tokens and the characters. Encoding adds no token, and
    raises an error for any other character: without it the text would be another problem.

    Args:
        characters: all characters that a text may hold.
        special: further special tokens, each one token wherever it is written out.

    Raises:
        ValueError: for a token that is empty or named twice.
    """
    # The import takes seconds, which workers that only generate problems need not wait.
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = [*CONTROL_TOKENS, *special, *characters]
    repeated = sorted({token for token in tokens if tokens.count(token) > 1})
    # A repeated token would leave an id without a token: the vocabulary is a dict by text.
    if repeated or "" in tokens:
        raise ValueError(f"character_tokenizer: name each token once and none empty; repeated are {repeated}.")
    # Without an unknown token the library raises an error for an unknown character.
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    # Not `.`, which does not match a line break.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # Without a decoder the library would put a space between any two tokens.
    backend.decoder = decoders.Fuse()
    return _wrapped(backend, CONTROL_TOKENS, special)


def arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``ArithmeticProblems``."""
    return character_tokenizer(
        string.digits + "+-*/%(),= " + string.ascii_lowercase, ("<big>", "<little>", "<scratchpad>", "<answer>")
    )


def reasoning_tokenizer() -> PreTrainedTokenizerFast:
    r"""Build the tokenizer of arithmetic with reasoning before each prediction: ``<think>...</think>\boxed{...}``."""
    return character_tokenizer(
        string.digits + "+-*/%(),= }" + string.ascii_lowercase,
        ("<big>", "<little>", "<scratchpad>", "<answer>", "<think>", "</think>", r"\boxed{"),
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of any text: ``<pad>``, ``<bos>``, ``<eos>``, then one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Sorted: the library lists the alphabet in another order in each process, and ids must stay the same.
    tokens = [*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, CONTROL_TOKENS)


def story_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``StoryProblems``: a token per word of the stories, with the space before it or without.

    Other words are written by characters: letters, digits, ASCII punctuation, spaces and line breaks. Any other character
    raises an error.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # The longest first, since the pattern takes the first that fits.
    words = sorted(["####", *story_words()], key=len, reverse=True)
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    tokens = list(dict.fromkeys([*CONTROL_TOKENS, *characters, *words, *(f" {word}" for word in words)]))
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf" ?(?:{'|'.join(words)})|[\s\S]"), "isolated")
    # Without a decoder the library would put a space between any two tokens.
    backend.decoder = decoders.Fuse()
    return _wrapped(backend, CONTROL_TOKENS)


def rpn_tokenizer(modulus: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer of ``RPNProblems``, with one token per word.

    The ids run over ``<pad>``, ``<boe>``, ``<eoe>``, the operands, the operators and ``=``: 20 ids for modulus 13. Single
    spaces separate words, in the decoded text too. Any other word raises an error.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    control = ("<pad>", BEGIN, END)
    tokens = [*control, *vocabulary(modulus)]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    # No decoder: the library then joins the words with single spaces, as they were.
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return _wrapped(backend, control)


def _wrapped(backend: Tokenizer, control: Sequence[str], special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers, with its padding, first and last token."""
    from transformers import PreTrainedTokenizerFast

    pad, begin, end = control
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        extra_special_tokens=list(special),
        clean_up_tokenization_spaces=False,  # clean-up removes spaces before punctuation
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
