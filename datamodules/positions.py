"""Positions of texts as samples: a context, and the tokens that really follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lit_rl.options import check_least
from lit_rl.text.encoding import check_prompt, encode_pairs
from lit_rl.text.token_bytes import write_pieces
from lit_rl.text.windows import Windows
from lit_rl.types import Sample


@dataclass(frozen=True)
class PositionSpec:
    """Positions of texts that become samples of next-token reasoning."""

    labels_length: int = 1
    """Following tokens that are kept with a position: a prediction of up to that many tokens can be right."""
    eval_positions: int = 512
    """Positions of the validation set and of the test set, evenly spread; 0 takes all of them."""

    def __post_init__(self) -> None:
        check_least(self, "data.positions", labels_length=1, eval_positions=0)


class Positions(Dataset[Sample]):
    """Targets of windows as samples, numbered among all targets.

    Args:
        windows: windows of the texts.
        pieces: bytes of every token id (`lit_rl.text.token_bytes.token_bytes`).
        labels_length: following tokens to keep.
    """

    def __init__(self, windows: Windows, pieces: list[bytes], labels_length: int) -> None:
        self.windows, self.pieces, self.labels_length = windows, pieces, labels_length
        self.places: NDArray[np.integer] = np.arange(windows.num_targets)  # (kept positions) numbers of targets
        self.entropies: NDArray[np.floating] | None = None
        """(windows.num_targets) nats of each target by a proxy model, NaN if the model did not compute it."""

    def __len__(self) -> int:
        return len(self.places)

    def keep(self, targets: NDArray[np.bool_]) -> None:
        """Keep only positions whose target is True in (windows.num_targets)."""
        self.places = self.places[targets[self.places]]

    def thin_out(self, count: int) -> None:
        """Keep ``count`` positions, evenly spread; 0 keeps all."""
        if 0 < count < len(self):
            self.places = self.places[np.arange(count) * len(self) // count]

    def token_counts(self) -> NDArray[np.int64]:
        """(n, 2) tokens of the context of each position, and of its target."""
        windows = self.windows
        owner = np.searchsorted(windows.offsets, self.places, side="right") - 1
        places = windows.firsts[owner] + self.places - windows.offsets[owner]
        context = len(windows.opening) + places - windows.starts[owner]
        return np.stack([context, np.minimum(self.labels_length, windows.limits[owner] - places)], axis=1)

    def __getitem__(self, index: int) -> Sample:
        # The number among all targets, not the index: sampling is keyed by it, so a filter leaves a position's draws alone.
        number = int(self.places[index])
        window, place = self.windows.locate(number)
        context = self.windows.context(window, place)
        # Up to the document's end, not the window's: the true continuation runs on in the next window.
        target = self.windows.ids[place : min(place + self.labels_length, int(self.windows.limits[window]))].tolist()
        reference = write_pieces([self.pieces[token] for token in target])
        # By number: a filter shortens the places, not the entropies.
        entropy = None if self.entropies is None else float(self.entropies[number])
        return Sample("", "", reference, number, context, target, entropy)


class WindowSamples(Dataset[Sample]):
    """Whole windows as samples for supervised training: their context and all their targets.

    Args:
        windows: the windows.
        end: the end token, which follows the last window of each document.
    """

    def __init__(self, windows: Windows, end: int) -> None:
        self.windows, self.end = windows, end

    def __len__(self) -> int:
        return len(self.windows)

    def token_counts(self) -> NDArray[np.int64]:
        """(n, 2) tokens of the context of each window, and of its targets with the end token."""
        windows = self.windows
        targets = windows.ends - windows.firsts + (windows.ends == windows.limits)
        return np.stack([len(windows.opening) + windows.firsts - windows.starts, targets], axis=1)

    def __getitem__(self, index: int) -> Sample:
        windows = self.windows
        first, stop = int(windows.firsts[index]), int(windows.ends[index])
        # Only the document's own end is an end: at the end of other windows the text goes on.
        target = windows.ids[first:stop].tolist() + ([self.end] if stop == windows.limits[index] else [])
        return Sample("", "", "", index, windows.context(index, first), target)


def windows_of_samples(name: str, samples: Dataset[Sample], tokenizer: PreTrainedTokenizerBase) -> Windows:
    """A window per sample with a completion: the prompt is context, every token of the completion a target.

    Args:
        name: name of the set, for the log.
        samples: whole samples.
        tokenizer: the policy's tokenizer.
    """
    whole = list(samples)  # type: ignore[call-overload]
    rank_zero_info(f"data.{name}: {len(whole):,} samples are tokenized into positions")
    kept = [sample for sample in whole if sample.completion]
    texts = [sample.prompt for sample in kept], [sample.completion for sample in kept]
    prompts, completions = encode_pairs(*texts, tokenizer)
    for sample, prompt in zip(kept, prompts, strict=True):
        check_prompt(sample.number, prompt)
    return Windows.of_documents(prompts, completions)
