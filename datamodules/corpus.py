"""Continuous text of any length: tokenized once, cut into windows for SFT, or into positions for next-token reasoning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_rl.options import check_least
from lit_rl.text.encoding import bos
from lit_rl.text.windows import Windows, slide

from .base import PromptDataModule
from .documents import find_source, read_source
from .lengths import model_positions
from .positions import PositionSpec, WindowSamples
from .token_cache import TokenCache, cache_key, read_cache, write_cache

TRAIN, VAL, TEST = range(3)


class Corpus(PromptDataModule):
    """Text files, JSONL or a data set of the ``datasets`` library, as windows of tokens.

    A text file is a document, and so is each line of JSONL; no window reaches across two documents. The hash of a document's
    text decides whether it is for training, validation or test, the same in every run; the last parts of a single document
    are held out.

    Args:
        path: a text file, a JSONL file, a folder of either, or a data set's name on the hub (its training split).
        field: field of the text in JSONL and data sets.
        window: tokens of a window, context included; the context of a position is at most one token shorter. The tokenizer's
            BOS, if it puts one before a text, is added before each window.
        context_tokens: tokens at the beginning of a window that are context and never targets, so that the first targets do not
            look hard merely because the text before them is cut away; at least 1.
        stride: tokens between the starts of two windows; 0: ``window - context_tokens``, so that every token but the first of a
            document is a target once.
        val_share: share of the documents for validation; 0 for none.
        test_share: share of the documents for the test set; 0 for none.
        positions: every target as a sample of next-token reasoning (RPT); none: whole windows, for SFT.
        cache_folder: folder for the tokens, some bytes for each; the first rank writes them, all ranks read them.
    """

    def __init__(
        self,
        path: str,
        *,
        field: str = "text",
        window: int = 512,
        context_tokens: int = 1,
        stride: int = 0,
        val_share: float = 0.05,
        test_share: float = 0.05,
        positions: PositionSpec | None = None,
        cache_folder: str = "~/.cache/lit_rl",
        **options: Any,
    ) -> None:
        super().__init__(group_by_length=False, **options)  # most windows have the same length
        self.path, self.field = path, field
        self.window, self.context_tokens, self.stride = window, context_tokens, stride or window - context_tokens
        self.val_share, self.test_share = val_share, test_share
        self.positions, self.cache_folder = positions, cache_folder
        self._check_options()

    def _check_options(self) -> None:
        check_least(self, "data", window=2)
        if not 1 <= self.context_tokens < self.window:
            raise ValueError(
                f"data.context_tokens is {self.context_tokens}; write 1 or more, and less than data.window ({self.window})."
            )
        if self.stride < 1:
            raise ValueError(f"data.stride is {self.stride}; write 1 or more, or 0 for window - context_tokens.")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise ValueError(
                f"data.val_share {self.val_share} and test_share {self.test_share}: write 0 or more, together less than 1."
            )

    def prepare_data(self) -> None:
        # One process per node runs this; `setup` reads the same files on every rank.
        source, identity = find_source(self.path, self.field)
        write_cache(self._folder(identity), read_source(source, self.field), self.tokenizer)

    def setup(self, stage: str) -> None:
        self._check_window()
        cache = read_cache(self._folder(find_source(self.path, self.field)[1]))
        ends, parts = self._divide(cache)
        windows = slide(cache.ids, ends, self.window, self.context_tokens, self.stride, opening=bos(self.tokenizer))
        # A document without tokens repeats an end; the first of equal ends is the document with windows, so side is left.
        owner = parts[np.searchsorted(ends, windows.limits)]  # (W)
        self.train_set = self._samples(windows.select(owner == TRAIN), TRAIN)
        self.val_set = self._samples(windows.select(owner == VAL), VAL)  # type: ignore[assignment]
        self.test_set = self._samples(windows.select(owner == TEST), TEST)  # type: ignore[assignment]
        if self.positions is not None:
            self.take_positions(self.positions)

    def _windows(self, name: str) -> Windows:
        return getattr(self, name).windows

    def _folder(self, identity: Any) -> Path:
        return Path(self.cache_folder).expanduser() / f"corpus-{cache_key(identity, self.tokenizer)}"

    def _divide(self, cache: TokenCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(D) ends of the documents and (D) the set of each; a single document becomes three."""
        if len(cache.ends) == 1:
            # Cut in order, not at random: held-out text then lies after all text that was trained on.
            shares = np.array([1 - self.val_share - self.test_share, 1 - self.test_share, 1.0])
            return (shares * cache.ends[0]).round().astype(np.int64), np.array([TRAIN, VAL, TEST])
        draws = cache.hashes / 2.0**64  # (D) in [0, 1]: the highest hashes are rounded to 1
        # Test comes first: another val_share moves no document into or out of the test set.
        limits = np.array([self.test_share, self.test_share + self.val_share])
        # Side right: a draw equal to a limit is above it, so a share of 0 gets no document.
        return np.array(cache.ends), np.array([TEST, VAL, TRAIN])[np.searchsorted(limits, draws, side="right")]

    def _samples(self, windows: Windows, part: int) -> WindowSamples:
        """The windows of a set; a set with a share must have some."""
        share = (1 - self.val_share - self.test_share, self.val_share, self.test_share)[part]
        if share and not len(windows):
            name = ("train", "val", "test")[part]
            raise ValueError(
                f"data: the corpus {self.path!r} leaves no text for the {name} set at val_share {self.val_share} and "
                f"test_share {self.test_share}; change the shares (0 for none), or give more text."
            )
        return WindowSamples(windows, int(self.tokenizer.eos_token_id))

    def _check_window(self) -> None:
        # Before the first batch: an index beyond the position table fails on a GPU without a readable reason.
        longest = model_positions(self.trainer.lightning_module.policy_spec)  # type: ignore[arg-type]
        added = len(bos(self.tokenizer))
        if longest is not None and self.window + added > longest:
            tokens = f"{self.window} and the tokenizer's BOS" if added else f"{self.window}"
            raise ValueError(
                f"data.window is {tokens}, but the model has {longest} positions; write {longest - added} or less."
            )
