"""Token bytes: the bytes that each token of a tokenizer stands for, read from its vocabulary and never by decoding.

Decoding a part of a text and encoding it again gives other tokens, and half a character decodes to U+FFFD. Byte-level BPE
writes every byte as a printable character. SentencePiece writes a space as U+2581 and single bytes as ``<0x0A>``. Word- and
character-level vocabularies hold the text itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\u2502"
"""Character between the tokens of a reference; as Latin-1 no byte becomes this character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES_LOST = {"WordPiece", "BPEDecoder", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers and decoders of vocabularies whose tokens do not say which spaces stand before them."""


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Bytes of every token id: the text of a special token, no bytes for an unused id.

    Raises:
        ValueError: for a tokenizer whose tokens do not say their bytes (WordPiece, words split at white space).
    """
    count = max(tokenizer.get_vocab().values()) + 1  # `len` would be too small for a vocabulary that leaves ids out
    tokens = tokenizer.convert_ids_to_tokens(list(range(count)))  # None for an id that is left out
    read = _reader(tokenizer)
    # Added tokens are plain text, except in SentencePiece: Gemma adds runs of U+2581 that are not special.
    spaced = read is _sentencepiece_bytes
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special or not spaced}
    return [added[number].encode() if number in added else read(token or "") for number, token in enumerate(tokens)]


def _reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """Function from a token of this vocabulary to its bytes."""
    # Tokenizers that are written in Python have no backend; they are taken for SentencePiece.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {"decoder": {"type": "Metaspace"}}
    kinds = set(_kinds(parts.get("pre_tokenizer"))) | set(_kinds(parts.get("decoder")))
    # CLIP's alphabet is byte-level too, but its `</w>` ends a word with or without a space after it.
    marks_ends = (parts.get("model") or {}).get("end_of_word_suffix")
    if "ByteLevel" in kinds and not marks_ends:
        table = _byte_characters()
        return lambda token: b"".join(table[character] if character in table else character.encode() for character in token)
    # A decoder may name neither and replace U+2581 itself. By default JSON writes that character as an escape.
    if kinds & {"Metaspace", "ByteFallback"} or "\u2581" in json.dumps(parts.get("decoder"), ensure_ascii=False):
        return _sentencepiece_bytes
    if marks_ends or kinds & _SPACES_LOST:
        raise ValueError(
            "this tokenizer splits words at white space (WordPiece and its like), and its tokens do not say which spaces stand "
            "before them; rewards on the bytes of a continuation need byte-level BPE, SentencePiece or characters."
        )
    return lambda token: token.encode()


def _kinds(part: Any) -> Iterable[str]:
    """Types of a component and of the components inside it."""
    if isinstance(part, dict):
        if "type" in part:
            yield part["type"]
        for inner in part.values():
            yield from _kinds(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, bytes]:
    """Alphabet of byte-level BPE: printable Latin-1 bytes stand for themselves, U+0100 and up for the other 68 in order."""
    # As in GPT-2, without 0xAD: a soft hyphen is invisible.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    characters = [*map(chr, printable), *(chr(256 + place) for place in range(len(rest)))]
    return {character: bytes([byte]) for character, byte in zip(characters, printable + rest, strict=True)}


def write_pieces(pieces: Sequence[bytes]) -> str:
    """Bytes of consecutive tokens as one readable text, a reference; `read_pieces` inverts it."""
    # Latin-1 has a character for each byte, so that half a character survives too.
    return SEPARATOR.join(piece.decode("latin-1") for piece in pieces)


def read_pieces(reference: str) -> list[bytes]:
    """Bytes of the tokens of a reference.

    Raises:
        ValueError: for a text that `write_pieces` does not write.
    """
    try:
        # An empty text has no tokens, but `split` would give one of no bytes.
        return [piece.encode("latin-1") for piece in reference.split(SEPARATOR)] if reference else []
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the reference {reference[:40]!r} holds no tokens of a text; RPT needs positions: set `positions` of the data."
        ) from error
