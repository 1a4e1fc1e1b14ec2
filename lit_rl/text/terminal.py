"""Text of unknown origin on a terminal: it is shown and does nothing."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, line breaks and lone surrogates as escapes such as ``\\x1b``.

    Args:
        text: any text.
        keep: characters that stay as they are, such as line breaks.
    """
    # An escape sequence could recolour the terminal, hide a line or set its title; a surrogate cannot be encoded.
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
