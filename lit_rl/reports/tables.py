"""Next-token accuracy by entropy band as a table in the shape of arXiv 2506.08007, Table 1."""

from __future__ import annotations

from lit_rl.evaluation.next_token import BANDS

ROWS = {"ntp_accuracy": "next token at once", "accuracy": "after reasoning"}


def band_table(metrics: dict[str, dict[str, float]], stage: str = "test") -> str:
    """Accuracies in percent with their 95 % intervals, as Markdown; empty if no run has any by band.

    Args:
        metrics: metrics that each run logged, by the run's name.
        stage: ``test`` or ``val``.
    """
    lines = []
    for name, values in metrics.items():
        for kind, label in ROWS.items():
            cells = [_cell(values, f"{stage}/{kind}_{band}") for band in BANDS]
            # A run without next-token evaluation has no bands.
            if any(cells):
                lines.append(f"| {name} | {label} | {' | '.join(cells)} | {_cell(values, f'{stage}/{kind}')} |")
    if not lines:
        return ""
    bands = " | ".join(f"{band} (> {floor} nats)" for band, floor in BANDS.items())
    return "\n".join([f"| run | prediction | {bands} | all |", "|---|---|" + "---|" * (len(BANDS) + 1), *lines])


def _cell(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    mean, low, high = (100 * values[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"
