"""Windows: stretches of long token sequences, each with targets, the tokens that a model predicts there.

A window begins with tokens that are context only. Without context the first targets of a window look hard merely because
the text before them is cut away. No token is a target twice, and no window reaches across two documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]


class Windows:
    """Places in one long sequence at which windows, their targets and their documents begin and end.

    Args:
        ids: (M) token ids of all documents, one after another; in memory or memory-mapped.
        starts: (W) place of a window's first token.
        firsts: (W) place of the window's first target, above ``starts``.
        ends: (W) place after the window's last target.
        limits: (W) place after the last token of the window's document.
        opening: token ids that a model reads before each window, as context; the tokenizer's BOS.
    """

    def __init__(self, ids: Ints, starts: Ints, firsts: Ints, ends: Ints, limits: Ints, opening: Sequence[int] = ()) -> None:
        self.ids, self.starts, self.firsts, self.ends, self.limits = ids, starts, firsts, ends, limits
        self.opening = list(opening)
        self.offsets = np.concatenate([[0], np.cumsum(ends - firsts)])  # (W + 1) targets before each window

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_targets(self) -> int:
        """Number of targets in all windows."""
        return int(self.offsets[-1])

    def locate(self, target: int) -> tuple[int, int]:
        """Window of a target, given by its number, and the target's place in the sequence."""
        # From the right: a window without targets has the offset of the next one, and must be passed over.
        window = int(np.searchsorted(self.offsets, target, side="right")) - 1
        return window, int(self.firsts[window] + target - self.offsets[window])

    def tokens(self, window: int) -> list[int]:
        """Token ids of a window as a model reads it: opening, context and targets."""
        return self.opening + self.ids[self.starts[window] : self.ends[window]].tolist()

    def context(self, window: int, place: int) -> list[int]:
        """Token ids that a model reads of a window before a place in the sequence."""
        return self.opening + self.ids[self.starts[window] : place].tolist()

    def select(self, windows: NDArray[Any]) -> Windows:
        """Windows of the same sequence, given by their numbers or by a mask (W)."""
        starts, firsts, ends, limits = (array[windows] for array in (self.starts, self.firsts, self.ends, self.limits))
        return Windows(self.ids, starts, firsts, ends, limits, self.opening)

    @classmethod
    def of_documents(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Windows:
        """One window per document: a prompt of at least one token as context, a completion as targets."""
        pairs = list(zip(prompts, completions, strict=True))
        lengths = [[len(prompt), len(completion)] for prompt, completion in pairs]
        sizes = np.array(lengths, dtype=np.int64).reshape(-1, 2)  # (W, 2), also for W = 0
        ids = np.array([token for pair in pairs for part in pair for token in part], dtype=np.int64)
        ends = sizes.sum(1).cumsum()
        starts = ends - sizes.sum(1)
        return cls(ids, starts, starts + sizes[:, 0], ends, ends)


def slide(ids: Ints, document_ends: Ints, size: int, context: int, stride: int, opening: Sequence[int] = ()) -> Windows:
    """Windows of ``size`` tokens every ``stride`` tokens of each document.

    The first window of a document has all but its first token as targets. Any other window has the tokens after its first
    ``context`` ones that are not targets of an earlier window. A stride above ``size - context`` leaves tokens out.

    Example: one document of 10 tokens, size 6, context 2, stride 4: tokens 0 to 5 with targets 1 to 5, then tokens 4 to 9 with
    targets 6 to 9.

    Args:
        ids: (M) token ids.
        document_ends: (D) place after the last token of each document.
        size: tokens of a window, context included.
        context: tokens at the beginning of a window that are never targets.
        stride: tokens from the start of a window to the start of the next one.
        opening: token ids that a model reads before each window.
    """
    pieces = []
    for begin, end in zip(np.concatenate([[0], document_ends[:-1]]), document_ends, strict=True):
        # A window that would hold nothing but context is not made.
        count = max(1, -(-(int(end - begin) - context) // stride))
        starts = begin + stride * np.arange(count, dtype=np.int64)
        ends = np.minimum(starts + size, end)
        # At least one token of context: nothing predicts a window's first token.
        firsts = starts + np.maximum(1, context)
        firsts[0] = begin + 1
        firsts[1:] = np.maximum(firsts[1:], ends[:-1])
        kept = firsts < ends  # overlapping windows may have no target left
        pieces.append(np.stack([starts, firsts, ends, np.full(count, end)])[:, kept])
    starts, firsts, ends, limits = np.concatenate(pieces, axis=1) if pieces else np.zeros((4, 0), dtype=np.int64)
    return Windows(ids, starts, firsts, ends, limits, opening)
