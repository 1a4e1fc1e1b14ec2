"""Positions of texts as samples: a context, and the tokens that really follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lit_rl.text.token_bytes import write_pieces
from lit_rl.text.windows import Windows
from lit_rl.types import Sample


@dataclass(frozen=True)
class PositionSpec:
    """Which positions of a text become samples of next-token reasoning."""

    labels_length: int = 1
    """Tokens of what follows that are kept with a position: predictions up to that many tokens can be right."""
    eval_positions: int = 512
    """Positions of the validation set and of the test set, evenly spread; 0 takes all of them."""

    def __post_init__(self) -> None:
        if self.labels_length < 1 or self.eval_positions < 0:
            raise ValueError(
                f"data.positions: labels_length is {self.labels_length} and eval_positions {self.eval_positions}; "
                "write 1 or more and 0 or more."
            )


class Positions(Dataset[Sample]):
    """Targets of windows as samples; a position's number is that of its target among all of them.

    Args:
        windows: where the targets are.
        pieces: bytes of every token id (`lit_rl.text.token_bytes.token_bytes`).
        labels_length: tokens of what follows to keep.
    """

    def __init__(self, windows: Windows, pieces: list[bytes], labels_length: int) -> None:
        self.windows, self.pieces, self.labels_length = windows, pieces, labels_length
        self.places: NDArray[np.integer] = np.arange(windows.num_targets)
        self.entropies: NDArray[np.floating] | None = None
        """(windows.num_targets) nats of each target by a proxy model, NaN where it was not asked."""

    def __len__(self) -> int:
        return len(self.places)

    def keep(self, targets: NDArray[np.bool_]) -> None:
        """Leave only those positions whose target is True in (windows.num_targets)."""
        self.places = self.places[targets[self.places]]

    def thin_out(self, count: int) -> None:
        """Leave ``count`` positions, evenly spread; 0 leaves all."""
        if 0 < count < len(self):
            self.places = self.places[np.arange(count) * len(self) // count]

    def __getitem__(self, index: int) -> Sample:
        number = int(self.places[index])
        window, place = self.windows.locate(number)
        context = self.windows.ids[self.windows.starts[window] : place].tolist()
        target = self.windows.ids[place : min(place + self.labels_length, int(self.windows.limits[window]))].tolist()
        reference = write_pieces([self.pieces[token] for token in target])
        entropy = None if self.entropies is None else float(self.entropies[number])
        return Sample("", "", reference, number, context, target, entropy)


class WindowSamples(Dataset[Sample]):
    """Whole windows as samples for supervised training: their context, and all that is to be predicted.

    Args:
        windows: the windows.
        end: the end token, put behind the last window of each document.
    """

    def __init__(self, windows: Windows, end: int) -> None:
        self.windows, self.end = windows, end

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        windows = self.windows
        start, first, stop = (int(array[index]) for array in (windows.starts, windows.firsts, windows.ends))
        target = windows.ids[first:stop].tolist() + ([self.end] if stop == windows.limits[index] else [])
        return Sample("", "", "", index, windows.ids[start:first].tolist(), target)


def positions_of_samples(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, pieces: list[bytes], labels_length: int
) -> Positions:
    """Every position inside the completions of whole samples."""
    kept = [sample for sample in samples if sample.completion]
    prompts = tokenizer([sample.prompt for sample in kept], add_special_tokens=False)["input_ids"]
    completions = tokenizer([sample.completion for sample in kept], add_special_tokens=False)["input_ids"]
    return Positions(Windows.of_documents(prompts, completions), pieces, labels_length)
