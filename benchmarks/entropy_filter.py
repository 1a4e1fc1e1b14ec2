"""Seconds and memory of filtering a corpus by a tiny proxy's entropy: a million characters tokenized and asked about.

    python -m benchmarks.entropy_filter

The first run tokenizes and computes. The second run reads both caches. ``peak_mib`` is the resident memory that the first run
adds to the process, the proxy's weights and activations included.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl

from benchmarks.timing import arguments, bare_trainer, report
from benchmarks.workloads import ALPHABET, save_model
from lit_rl.algorithms import SFT
from lit_rl.callbacks import EntropyFilter
from lit_rl.datamodules import Corpus, PositionSpec
from lit_rl.models import PolicySpec

SIZES = {"1M tokens": (1_000_000, 512), "tiny": (4_000, 64)}
"""Characters of the corpus, tokens of a window; a character is a token."""


def run(folder: Path, window: int, device: str) -> float:
    """Seconds that the corpus and the filter take before a run begins."""
    data = Corpus(
        str(folder / "text.txt"),
        window=window,
        context_tokens=window // 4,
        positions=PositionSpec(),
        cache_folder=str(folder / "cache"),
    )
    module = SFT(PolicySpec(pretrained=str(folder / "model")))
    entropy_filter = EntropyFilter(quantile=0.8, cache_folder=str(folder / "cache"))
    trainer = bare_trainer(device, 1, pl.Callback())
    trainer.strategy.connect(module)
    trainer.datamodule, data.trainer = data, trainer  # type: ignore[attr-defined]
    start = time.perf_counter()
    data.prepare_data()
    data.setup("fit")
    entropy_filter.setup(trainer, module, "fit")
    return time.perf_counter() - start


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), [], list(SIZES), argv)
    warnings.filterwarnings("ignore")
    for workload in args.workloads:
        size, window = SIZES[workload]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_model(folder / "model", hidden=64)
            (folder / "text.txt").write_text("".join(random.Random(0).choices(ALPHABET, k=size)))
            before = peak_mib()
            first = run(folder, window, args.device)
            peak = peak_mib() - before
            second = run(folder, window, args.device)
        metrics = {"first_seconds": first, "second_seconds": second, "peak_mib": peak}
        report("entropy_filter", workload, {"lit_rl": metrics}, tokens=size, device=args.device, threads=args.threads)


if __name__ == "__main__":
    main()
