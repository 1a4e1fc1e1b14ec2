"""Splits by hash: the text of an example decides which set has it, in every process and whatever stands beside it."""

from __future__ import annotations

from hashlib import sha256


def hash_share(text: str) -> float:
    """Place of a text in [0, 1), uniform over texts: a split takes an interval of places."""
    return hash_number(text, 6) / 2**48


def hash_number(text: str, num_bytes: int) -> int:
    """First bytes of a text's SHA-256, as an integer."""
    # Python's own hash of a text differs between processes. JSON may hold lone surrogates, which UTF-8 alone refuses.
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:num_bytes], "big")
