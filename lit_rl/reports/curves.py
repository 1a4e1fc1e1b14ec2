"""Curves of a run from its CSV logs, and a picture of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

Curve = dict[str, list[tuple[int, float]]]
"""(step, value) of each metric, by its name."""


def read_curve(folder: Path) -> Curve:
    """All metrics that the run in this folder logged; of a step that a resumed run logged again, the later value."""
    values: dict[str, dict[int, float]] = {}
    # By time, not by name: version_10 would come before version_2.
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    for log in logs:
        with log.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                for name, text in row.items():
                    # CSVLogger leaves a metric's cell empty at steps that did not log it.
                    if text and name not in ("step", "epoch"):
                        values.setdefault(name, {})[step] = float(text)
    return {name: sorted(points.items()) for name, points in values.items()}


def draw_curves(curves: dict[str, Curve], path: Path) -> bool:
    """Draw training reward and validation accuracy over optimizer steps as a PNG, one column per run.

    Returns:
        Whether any run has one of them; without any no file is written.
    """
    import matplotlib as mpl

    # Draws without a display.
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = {name: curve for name, curve in curves.items() if "val/accuracy" in curve or "reward" in curve}
    if not shown:
        return False
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 4), sharey=True, squeeze=False)
    for axis, (name, curve) in zip(axes[0], shown.items(), strict=True):
        _draw_curve(axis, curve)
        axis.set(title=name, xlabel="optimizer step", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    # pyplot keeps every open figure in memory.
    plt.close(figure)
    return True


def _draw_curve(axis: Any, curve: Curve) -> None:
    if "reward" in curve:
        steps, rewards = zip(*curve["reward"], strict=True)
        axis.plot(steps, rewards, color="tab:orange", alpha=0.5, linewidth=0.8, label="reward (training)")
    if "val/accuracy" in curve:
        steps, accuracy = zip(*curve["val/accuracy"], strict=True)
        axis.plot(steps, accuracy, color="tab:blue", marker=".", label="accuracy (held out)")
        bounds = [dict(curve.get(f"val/accuracy_{side}", [])) for side in ("low", "high")]
        if all(step in bound for step in steps for bound in bounds):
            axis.fill_between(steps, *([bound[step] for step in steps] for bound in bounds), alpha=0.2)
