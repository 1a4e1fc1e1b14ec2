"""Comparison of policies as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from lit_rl.text.terminal import printable

LISTED = 20
"""Most questions of a pair that are listed by their numbers."""


class Table(NamedTuple):
    """Cells of a table."""

    header: list[str]
    rows: list[list[str]]


def tables(report: dict[str, Any]) -> list[Table]:
    """Metrics of each policy, and the difference of each pair; shares in percent with 95 % intervals.

    Args:
        report: a report of `lit_rl.evaluation.compare`.
    """
    policies: dict[str, dict[str, Any]] = report["policies"]
    # A column for each policy: three of them fit into 80 characters.
    metrics = [name for name in next(iter(policies.values())) if name != "tokens"]
    own = [[_label(metric), *(_percent(values[metric]) for values in policies.values())] for metric in metrics]
    own.append(["mean tokens", *(f"{values['tokens']:.1f}" for values in policies.values())])
    pairs = [
        [
            f"{pair['second']} - {pair['first']}",
            _label(pair["metric"]),
            _percent(pair["difference"], "+"),
            str(len(pair["gained"])),
            str(len(pair["lost"])),
            f"{pair['p_value']:.2g}",
        ]
        for pair in report["pairs"]
    ]
    return [
        Table(["metric", *policies], own),
        Table(["difference", "metric", "points", "gained", "lost", "p"], pairs),
    ]


def remarks(report: dict[str, Any]) -> list[str]:
    """Number of the questions, and numbers of those that changed sides between two policies' greedy completions."""
    left_out = f"; {report['left_out']} that some policies were not asked are left out" if report["left_out"] else ""
    asked = [f"Questions: {report['questions']}{left_out}. Percent with 95 % intervals; p of McNemar's exact test."]
    sides = [
        f"{pair['second']} {verb} {_listed(pair[side])} against {pair['first']}."
        for pair in report["pairs"]
        if pair["metric"] == "accuracy"
        for side, verb in (("gained", "gains questions"), ("lost", "loses questions"))
        if pair[side]
    ]
    return asked + sides


def markdown(report: dict[str, Any]) -> str:
    """The whole comparison as Markdown."""
    parts = []
    for table in tables(report):
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in remarks(report))])


def show(report: dict[str, Any]) -> None:
    """Print the whole comparison."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        # A file has no width to fold the cells to.
        console.print(printable(markdown(report), keep="\n"))
        return
    for table in tables(report):
        shown = RichTable(*table.header)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for remark in remarks(report):
        console.print(printable(remark))


def _percent(value: dict[str, float], sign: str = "") -> str:
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _label(metric: str) -> str:
    """The field's name of a metric: ``pass@8`` for ``pass_at_8``."""
    return metric.replace("_at_", "@")


def _listed(numbers: list[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(map(str, numbers[:LISTED])) + more
