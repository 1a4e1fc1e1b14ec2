"""Stop strings: texts that end a completion, whatever tokens spell them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lit_rl.text.token_bytes import token_bytes


class StopStrings:
    """Texts that end a completion.

    Args:
        texts: the texts.
        tokenizer: the tokenizer of the completions.

    Raises:
        ValueError: for an empty text, or a tokenizer whose tokens do not say their bytes.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        if "" in texts:
            raise ValueError("model.policy.stop_strings holds an empty text, which would end each completion at once.")
        self.texts = list(texts)
        self._stops = [text.encode() for text in texts]
        self._pieces = token_bytes(tokenizer) if texts else []
        self._kept = max(map(len, self._stops), default=1) - 1  # bytes that may begin a stop string

    def __bool__(self) -> bool:
        return bool(self.texts)

    def watch(self, rows: int) -> StopWatch:
        """A watch over completions that begin now."""
        return StopWatch(self._stops, self._pieces, self._kept, rows)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        places = [place for place in (text.find(stop) for stop in self.texts) if place >= 0]
        return text[: min(places)] if places else text


class StopWatch:
    """Finds stop strings in completions while their tokens come one by one.

    Args:
        stops: bytes of the stop strings.
        pieces: bytes of each token.
        kept: bytes at the end of a completion that may begin a stop string.
        rows: number of completions.
    """

    def __init__(self, stops: list[bytes], pieces: list[bytes], kept: int, rows: int) -> None:
        self._stops, self._pieces, self._kept = stops, pieces, kept
        self._tails = [b""] * rows
        self.stopped = [False] * rows
        """Whether a stop string has ended each completion."""

    def add(self, row: int, token: int) -> bool:
        """Give a completion its next token; returns whether a stop string ends with it, or inside it."""
        # A head may have ids past the tokenizer's last; they are never sampled, but finished rows hold any token.
        tail = self._tails[row] + (self._pieces[token] if token < len(self._pieces) else b"")
        self._tails[row] = tail[-self._kept :] if self._kept else b""
        self.stopped[row] = any(stop in tail for stop in self._stops)
        return self.stopped[row]
