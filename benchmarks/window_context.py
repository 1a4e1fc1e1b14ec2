"""Error of the entropy of a window's first targets when the text before the window is cut away, by length of its context.

    OMP_WAIT_POLICY=passive python -m benchmarks.window_context --path tinyshakespeare.txt

A small character model is trained on the text. Then held-out text is cut into windows of 64 characters, with 1 to 32 of them as
context, and the mean entropy (nats, full distribution) of each window's first targets is compared with that of the very same
characters with at least 128 characters of text before them.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import bare_trainer
from lit_rl.algorithms import SFT
from lit_rl.datamodules import Corpus
from lit_rl.entropy.compute import window_entropies
from lit_rl.evaluation import Evaluation
from lit_rl.models import PolicySpec
from lit_rl.tasks.tokenizers import character_tokenizer
from lit_rl.text.windows import Windows, slide

TRAINED, SEEN = 192, 128
"""Characters of a training window; least number of characters before a target of the unbroken text."""
ASKED = 20_000
"""Held-out characters whose entropy is asked for."""
WINDOW, CONTEXTS, FIRST = 64, (1, 4, 8, 16, 32), 4
"""Characters of a window, characters of its context, number of its first targets that are averaged."""
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def train(path: Path, folder: Path, steps: int) -> tuple[SFT, Windows]:
    """A model of the text, and windows of the held-out part."""
    character_tokenizer("".join(sorted(set(path.read_text(encoding="utf-8"))))).save_pretrained(folder)
    optimizer = functools.partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.0)
    policy = PolicySpec(config=CONFIG, tokenizer=str(folder))
    module = SFT(policy, optimizer=optimizer, evaluation=Evaluation(max_new_tokens=0))
    data = Corpus(str(path), window=TRAINED, test_share=0.0, cache_folder=str(folder / "cache"), batch_size=16)
    trainer = bare_trainer("cpu", steps, pl.Callback())
    trainer.fit(module, data)
    return module, data.val_set.windows  # type: ignore[attr-defined]


def by_place(module: SFT, windows: Windows) -> NDArray[np.float32]:
    """Entropy of each target at its place in the sequence, NaN at other places."""
    found = np.full(len(windows.ids), np.nan, dtype=np.float32)
    values = np.concatenate([part for _, part in window_entropies(module.policy, windows)])
    for first, end, offset in zip(windows.firsts, windows.ends, windows.offsets[:-1], strict=True):
        found[first:end] = values[offset : offset + end - first]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="a text file")
    parser.add_argument("--steps", type=int, default=250, help="training steps, each of 16 windows of 192 characters")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        module, held_out = train(args.path, Path(name), args.steps)
        text = np.array(held_out.ids[held_out.starts.min() : held_out.limits.max()])[:ASKED]
        end = np.array([len(text)])
        unbroken = by_place(module, slide(text, end, TRAINED, SEEN, TRAINED - SEEN))
        for context in CONTEXTS:
            windows = slide(text, end, WINDOW, context, WINDOW - context)
            found = by_place(module, windows)
            first = (
                windows.firsts[4:, None] + np.arange(FIRST)
            ).ravel()  # from here the unbroken text has `SEEN` characters before it
            first = first[first < len(text)]
            cut, whole = float(found[first].mean()), float(unbroken[first].mean())
            line = {"benchmark": "window_context", "context_tokens": context, "entropy": cut, "unbroken": whole}
            rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}
            print(json.dumps(rounded | {"off": round(cut - whole, 3), "targets": len(first)}), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
