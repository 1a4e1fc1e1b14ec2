"""Continuous text of any length: tokenized once, cut into windows for SFT, or into positions for next-token reasoning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from lit_rl.text.token_bytes import token_bytes
from lit_rl.text.windows import Windows, slide

from .base import PromptDataModule
from .documents import find_source, read_source
from .positions import Positions, PositionSpec, WindowSamples
from .token_cache import TokenCache, cache_key, read_cache, write_cache

TRAIN, VAL, TEST = range(3)


class Corpus(PromptDataModule):
    """Text files, JSONL or a data set of the ``datasets`` library, as windows of tokens.

    A text file is a document, and so is each line of JSONL; no window reaches across two. A document belongs to training,
    validation or test by the hash of its text, so the same in every run; of a single document the last parts are held out.

    Args:
        path: a text file, a folder of text or JSONL files, a JSONL file, or a data set's name on the hub (its training split).
        field: where JSONL and data sets hold the text.
        window: tokens of a window, its context included; for positions the longest context, but for one token.
        context_tokens: tokens at the beginning of a window that are context and never targets, so that the first targets do not
            look hard merely because the text before them is cut away; 1 is the least that every target needs.
        stride: tokens between the starts of two windows; 0: ``window - context_tokens``, so that every token but the first of a
            document is a target once.
        val_share: share of the documents for validation; 0 for none.
        test_share: share of the documents for the test set; 0 for none.
        positions: every target as a sample of next-token reasoning (RPT); none: whole windows, for SFT.
        cache_folder: where the tokens are kept, some bytes for each; ranks read what the first one wrote.
        batch_size: prompts per batch, over all ranks: one optimizer step of SFT, one rollout of reinforcement learning.
        eval_batch_size: problems that are answered at a time in evaluation, on each rank.
        num_workers: loader processes per rank; 0 prepares batches in the main process.
        seed: of the order of samples; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        path: str,
        field: str = "text",
        window: int = 512,
        context_tokens: int = 1,
        stride: int = 0,
        val_share: float = 0.05,
        test_share: float = 0.05,
        positions: PositionSpec | None = None,
        cache_folder: str = "~/.cache/lit_rl",
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed=seed)
        self.path, self.field = path, field
        self.window, self.context_tokens, self.stride = window, context_tokens, stride or window - context_tokens
        self.val_share, self.test_share = val_share, test_share
        self.positions, self.cache_folder = positions, cache_folder
        self._check_options()

    def _check_options(self) -> None:
        if self.window < 2:
            raise ValueError(f"data.window is {self.window}; write 2 or more: a token and one before it.")
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
        source, identity = find_source(self.path, self.field)
        write_cache(self._folder(identity), read_source(source, self.field), self.tokenizer)

    def setup(self, stage: str) -> None:
        self._check_window()
        cache = read_cache(self._folder(find_source(self.path, self.field)[1]))
        ends, parts = self._divide(cache)
        windows = slide(cache.ids, ends, self.window, self.context_tokens, self.stride)
        owner = parts[np.searchsorted(ends, windows.limits)]
        self.train_set = self._samples(windows.select(owner == TRAIN), TRAIN)
        self.val_set = self._samples(windows.select(owner == VAL), VAL)  # type: ignore[assignment]
        self.test_set = self._samples(windows.select(owner == TEST), TEST)  # type: ignore[assignment]
        if self.positions is not None:
            self.take_positions(self.positions)

    def take_positions(self, spec: PositionSpec) -> None:
        pieces = token_bytes(self.tokenizer)
        for name in ("train_set", "val_set", "test_set"):
            positions = Positions(getattr(self, name).windows, pieces, spec.labels_length)
            if name != "train_set":
                positions.thin_out(spec.eval_positions)
            setattr(self, name, positions)

    def _folder(self, identity: Any) -> Path:
        return Path(self.cache_folder).expanduser() / f"corpus-{cache_key(identity, self.tokenizer)}"

    def _divide(self, cache: TokenCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(D) where documents end and (D) which set each belongs to; a single document becomes three."""
        if len(cache.ends) == 1:
            shares = np.array([1 - self.val_share - self.test_share, 1 - self.test_share, 1.0])
            return (shares * cache.ends[0]).round().astype(np.int64), np.array([TRAIN, VAL, TEST])
        draws = cache.hashes / 2.0**64
        limits = np.array([self.test_share, self.test_share + self.val_share])
        return np.array(cache.ends), np.array([TEST, VAL, TRAIN])[np.searchsorted(limits, draws, side="right")]

    def _samples(self, windows: Windows, part: int) -> WindowSamples:
        """The windows of a set, which must have some where any were asked for."""
        share = (1 - self.val_share - self.test_share, self.val_share, self.test_share)[part]
        if share and not len(windows):
            name = ("train", "val", "test")[part]
            raise ValueError(
                f"data: the corpus {self.path!r} leaves no text for the {name} set at val_share {self.val_share} and "
                f"test_share {self.test_share}; change the shares (0 for none), or give more text."
            )
        return WindowSamples(windows, int(self.tokenizer.eos_token_id))

    def _check_window(self) -> None:
        longest = _model_context(getattr(self._trainer().lightning_module, "policy_spec", None))
        if longest is not None and self.window > longest:
            raise ValueError(f"data.window is {self.window}, but the model has {longest} positions; write {longest} or less.")


def _model_context(spec: Any) -> int | None:
    """Positions of the model to come, where its config says so."""
    if spec is None:
        return None
    try:
        config = AutoConfig.from_pretrained(spec.pretrained) if spec.pretrained else AutoConfig.for_model(**spec.config)
    except (OSError, ValueError, TypeError):  # the model's own loading says it better
        return None
    return None if config.model_type == "bloom" else getattr(config, "max_position_embeddings", None)
