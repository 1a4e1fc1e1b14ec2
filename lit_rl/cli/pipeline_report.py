"""Report of a pipeline: each stage's results, and the summary after the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_rl.cli.stages import Stage
from lit_rl.files import write_text
from lit_rl.reports.curves import draw_curves, read_curve


def stage_report(stage: Stage) -> dict[str, Any]:
    """Report of a stage's run, with its folder; of an evaluation its metrics, of a comparison all but the texts."""
    report: dict[str, Any] = {"run": stage.run, "folder": str(stage.folder)}
    report["process_seconds"] = stage.status.get("process_seconds")
    if stage.run in ("validate", "test"):
        report["metrics"] = {name: points[-1][1] for name, points in read_curve(stage.folder).items()}
    if stage.run == "compare":
        report |= {name: value for name, value in stage.comparison.items() if name != "changed"}
    return report | stage.report


def summary(report: dict[str, Any], stages: list[Stage], root: Path) -> Iterator[tuple[str, str]]:
    """Draw the curves and write the tables.

    Args:
        report: report of each stage by name.
        stages: the stages.
        root: folder of the pipeline.

    Yields:
        A text to print, and the name of the stage that it is about: places, tables, and each stage's improvement.
    """
    from lit_rl.reports.tables import band_table  # imports torch

    curves = {stage.name: read_curve(stage.folder) for stage in stages if stage.run == "fit"}
    if draw_curves(curves, root / "curve.png"):
        yield f"Curve: {root / 'curve.png'}", ""
    bands = band_table({name: entry.get("metrics", {}) for name, entry in report.items()})
    compared = {stage.name: stage.folder / "comparison.md" for stage in stages if stage.run == "compare"}
    tables = [bands] if bands else []
    tables += [f"## {name}\n\n{path.read_text(encoding='utf-8').rstrip()}" for name, path in compared.items()]
    if tables:
        write_text(root / "table.md", "\n\n".join(tables) + "\n")
    for table in tables:
        yield table, ""
    for name, entry in report.items():
        if "improvement" in entry:
            before, after = (100 * entry[key]["value"] for key in ("before", "after"))
            yield f": {before:.1f} % -> {after:.1f} % in {entry['steps']} steps, {entry['seconds']:.0f} s", name
