"""Entropies of the targets of windows, computed once and kept on disk: a killed run goes on where it stopped.

The file is an array of float32 nats, one for each target. It is filled from the front; NaN stands for "not computed yet".
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from lit_rl.entropy.compute import window_entropies
from lit_rl.files import new_file
from lit_rl.models.policy import Policy
from lit_rl.models.spec import PolicySpec
from lit_rl.text.windows import Windows

FLUSH_BATCHES = 16
"""Batches between two flushes to disk."""
PATIENCE = 7200.0
"""Seconds without a new value after which other processes stop waiting."""


def entropy_key(windows: Windows, proxy: PolicySpec, seed: int, tokenizer: PreTrainedTokenizerBase, top_k: int) -> str:
    """Name of these entropies: the same windows, model, tokenizer and ``top_k`` give the same name.

    A model folder counts by the content of its files; ``seed`` counts because it seeds the weights of a model from scratch.
    """
    digest = hashlib.sha256()
    # Only the stretch that windows reach, and places relative to it: text elsewhere in the corpus does not change the name.
    start, stop = (int(windows.starts.min()), int(windows.limits.max())) if len(windows) else (0, 0)
    digest.update(np.ascontiguousarray(windows.ids[start:stop]).data)
    for places in (windows.starts, windows.firsts, windows.ends, windows.limits):
        # int64 always: equal places in another integer type must give equal bytes.
        digest.update(np.ascontiguousarray(places - start, dtype=np.int64).data)
    # The vocabulary too: the same ids are another text under another tokenizer.
    model = [asdict(proxy), seed, _folder_hashes(proxy.pretrained), sorted(tokenizer.get_vocab().items()), top_k]
    digest.update(json.dumps([*model, windows.opening], sort_keys=True).encode())
    return digest.hexdigest()[:24]


def _folder_hashes(source: str | None) -> list[str]:
    """Hashes of the files of a model folder; none for a name on the hub."""
    files = sorted(Path(source).expanduser().iterdir()) if source and Path(source).expanduser().is_dir() else []
    hashes = []
    for path in files:
        # Weights and their config; a changed README does not cost hours.
        if path.suffix in (".json", ".safetensors", ".bin"):
            with path.open("rb") as file:
                hashes.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashes


def read_entropies(file: Path) -> NDArray[np.float32]:
    """(windows.num_targets) nats, memory-mapped and read-only."""
    return np.load(file, mmap_mode="r")


def is_complete(file: Path) -> bool:
    """Whether the file exists and is full."""
    # The file fills from the front, so its last value speaks for all.
    return file.is_file() and (len(values := read_entropies(file)) == 0 or not math.isnan(values[-1]))


def fill_entropies(file: Path, windows: Windows, proxy: Callable[[], Policy], top_k: int, batch_tokens: int) -> None:
    """Compute the entropies that the file lacks, with a progress bar.

    Args:
        file: created if it does not exist.
        windows: (W) with at least one target.
        proxy: builds the model that is asked; called only if the file lacks something.
        top_k: entropy over that many most likely tokens, renormalised; 0 takes all.
        batch_tokens: tokens of one forward pass.

    Raises:
        ValueError: if the model's entropy is NaN.
    """
    if is_complete(file):
        return
    if not file.is_file():
        _begin(file, windows.num_targets)
    values = np.load(file, mmap_mode="r+")
    done = _num_done(values)
    # A window that is computed in part is computed again as a whole.
    window = windows.locate(done)[0]
    with Progress(transient=True) as progress:
        bar = progress.add_task("Entropies", total=windows.num_targets)
        for number, (stop, found) in enumerate(window_entropies(proxy(), windows, top_k, batch_tokens, window), start=1):
            end = int(windows.offsets[stop])
            # Written down, it would read as not computed yet, and the search above would go wrong.
            if np.isnan(found).any():
                raise ValueError(f"the proxy's entropy is NaN before window {stop}: it may overflow in its dtype; try float32.")
            values[end - len(found) : end] = found
            # A killed process leaves its pages to the kernel; `flush` limits what a crash of the machine costs.
            if number % FLUSH_BATCHES == 0:
                values.flush()
            progress.update(bar, completed=end)
    values.flush()


def wait_for_entropies(file: Path, patience: float = PATIENCE, pause: float = 1.0) -> None:
    """Wait until another process has filled the file.

    Args:
        file: the file; it may not exist yet.
        patience: seconds without a new value after which waiting ends.
        pause: seconds between two looks.

    Raises:
        ValueError: if the file does not grow any more.
    """
    before, last = -1, time.monotonic()
    while not is_complete(file):
        done = _num_done(read_entropies(file)) if file.is_file() else 0
        if done > before:
            before, last = done, time.monotonic()
        elif time.monotonic() - last > patience:
            raise ValueError(f"{file}: no new entropies for {patience / 60:.0f} minutes; has the first process died?")
        time.sleep(pause)


def _num_done(values: NDArray[np.float32]) -> int:
    """Number of values that are computed."""
    # The key is False up to the last computed value and True after it, as bisection needs.
    return bisect.bisect_left(range(len(values)), True, key=lambda place: math.isnan(values[place]))


def _begin(file: Path, size: int) -> None:
    """Create a file in which no target is computed yet."""
    # Under its name the file always has its full length: a reader never maps a part.
    with new_file(file) as new:
        values = np.lib.format.open_memmap(new, mode="w+", dtype=np.float32, shape=(size,))
        values[:] = math.nan
        values.flush()
