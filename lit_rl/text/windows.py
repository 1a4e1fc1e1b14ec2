"""Windows: stretches of long token sequences, and in each of them the positions that are to be predicted.

A window begins with tokens that are context only. Without them the first positions of a window would look hard merely because
the text before them was cut away. No position is a target twice, and no window reaches across two documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]


class Windows:
    """Where windows, their targets and their documents begin and end, as places in one long sequence.

    Args:
        ids: (M) token ids of all documents, one after another; in memory or memory-mapped.
        starts: (W) the first token that a window holds.
        firsts: (W) its first target, above ``starts``.
        ends: (W) behind its last target.
        limits: (W) behind the last token of its document.
    """

    def __init__(self, ids: Ints, starts: Ints, firsts: Ints, ends: Ints, limits: Ints) -> None:
        self.ids, self.starts, self.firsts, self.ends, self.limits = ids, starts, firsts, ends, limits
        self.offsets = np.concatenate([[0], np.cumsum(ends - firsts)])  # (W + 1) targets before each window

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_targets(self) -> int:
        """Targets of all windows."""
        return int(self.offsets[-1])

    def locate(self, target: int) -> tuple[int, int]:
        """The window of a target, and its place in the sequence."""
        window = int(np.searchsorted(self.offsets, target, side="right")) - 1
        return window, int(self.firsts[window] + target - self.offsets[window])

    def tokens(self, window: int) -> list[int]:
        """All tokens of a window, context and targets."""
        return self.ids[self.starts[window] : self.ends[window]].tolist()

    def select(self, windows: NDArray[Any]) -> Windows:
        """Those windows, given by their numbers or by a mask (W), of the same sequence."""
        return Windows(self.ids, *(array[windows] for array in (self.starts, self.firsts, self.ends, self.limits)))

    @classmethod
    def of_documents(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Windows:
        """One window per document: a prompt of at least one token, which is context, and a completion, the targets."""
        sizes = np.array([[len(prompt), len(completion)] for prompt, completion in zip(prompts, completions, strict=True)])
        ends = sizes.reshape(-1, 2).sum(1).cumsum()
        rows = [token for pair in zip(prompts, completions, strict=True) for part in pair for token in part]
        starts = ends - sizes.reshape(-1, 2).sum(1)
        return cls(np.array(rows, dtype=np.int64), starts, starts + sizes.reshape(-1, 2)[:, 0], ends, ends)


def slide(ids: Ints, document_ends: Ints, size: int, context: int, stride: int) -> Windows:
    """Windows of ``size`` tokens every ``stride`` tokens of each document.

    The first window of a document has all but its first token as targets; any other its tokens behind the first ``context``
    ones, as far as no earlier window has them. A stride above ``size - context`` leaves tokens out.

    Example: one document of 10 tokens, size 6, context 2, stride 4: tokens 0 to 5 with targets 1 to 5, then tokens 4 to 9 with
    targets 6 to 9.

    Args:
        ids: (M) token ids.
        document_ends: (D) behind the last token of each document.
        size: tokens of a window, context included.
        context: tokens at the beginning of a window that are never targets.
        stride: tokens between the starts of two windows.
    """
    pieces = []
    for begin, end in zip(np.concatenate([[0], document_ends[:-1]]), document_ends, strict=True):
        count = max(1, -(-(int(end - begin) - context) // stride))
        starts = begin + stride * np.arange(count, dtype=np.int64)
        ends = np.minimum(starts + size, end)
        firsts = starts + np.maximum(1, context)
        firsts[0] = begin + 1
        firsts[1:] = np.maximum(firsts[1:], ends[:-1])
        kept = firsts < ends
        pieces.append(np.stack([starts, firsts, ends, np.full(count, end)])[:, kept])
    return Windows(ids, *np.concatenate(pieces, axis=1)) if pieces else Windows(ids, *np.zeros((4, 0), dtype=np.int64))
