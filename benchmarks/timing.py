"""Two sides measured in turns, A B A B, and the ratio of their medians as one JSON line."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch


def arguments(
    description: str, peers: list[str], workloads: list[str], argv: list[str] | None = None, compiles: bool = False
) -> argparse.Namespace:
    """Options of a benchmark's command line.

    Args:
        description: text of the help.
        peers: names of systems to compare with.
        workloads: names of workloads; all but ``tiny`` run by default.
        argv: the command line; none: the one of this process.
        compiles: whether the benchmark can compile.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--against", choices=peers, help="measure the peer too, in turns")
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=[name for name in workloads if name != "tiny"])
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of either side")
    if compiles:
        parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return args


def bare_trainer(device: str, max_steps: int, clock: pl.Callback, micro_batches: int = 1) -> pl.Trainer:
    """A Trainer that does nothing but train, on one device."""
    return pl.Trainer(
        accelerator=device,
        devices=1,
        max_steps=max_steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        accumulate_grad_batches=micro_batches,
    )


def alternate(sides: dict[str, Callable[[], dict[str, float]]], runs: int) -> dict[str, dict[str, float]]:
    """Median of each metric that the sides return, run in turns.

    Args:
        sides: each measures itself once and returns named metrics.
        runs: measured turns; one before them is not counted.
    """
    metrics: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(runs + 1):
        for name, measure in sides.items():
            measured = measure()
            if turn:
                metrics[name].append(measured)
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in metrics.items()}


def report(benchmark: str, workload: str, medians: dict[str, dict[str, float]], **more: Any) -> None:
    """Print one JSON line; ``ratio`` is the seconds of the first peer divided by ours."""
    ours, *peers = medians
    line: dict[str, Any] = {"benchmark": benchmark, "workload": workload, **more}
    for name, metrics in medians.items():
        line |= {f"{name}/{key}": round(value, 4) for key, value in metrics.items()}
    if peers:
        line["ratio"] = round(medians[peers[0]]["seconds"] / medians[ours]["seconds"], 2)
    print(json.dumps(line), flush=True)
