"""``lit-rl demo regime_w``: the scores of Regime W on a few questions with written answers, without a model."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lit_rl.rewards import RegimeW
from lit_rl.training.dry_run import written_rollouts
from lit_rl.types import Sample

DEMOS = ("regime_w",)

COLUMNS = {
    "right": "1 if any answer of the question is right",
    "s_end": "share of pairs of answers that are equal",
    "s_path": "1 / (1 + variance of words / mean words), 1 for answers of one length",
    "s_cf": "share of answers that follow a change of the question; 0.5: not asked",
    "s_wm": "0.4 s_end + 0.3 s_path + 0.3 s_cf",
    "cost": "0.001 for each word of the mean length above 400",
    "reward": "(1 if right, else -0.5) + 0.7 s_wm - cost, for all answers alike",
    "responses": "each answer paid for itself (per: response): right beats wrong",
}
"""Explanation of each column."""


class Case(NamedTuple):
    """Written answers of four arms to one question."""

    title: str
    answers: list[str]
    follow: list[float] = [0.5] * 4
    """Whether each answer follows a change of the question, 1 or 0; 0.5 if no changed question was asked."""


LEFT, ALONG = "23 - 8 = 15\n#### 15", "23 + 8 = 31\n#### 31"
SOLD = "48 / 2 = 24 in May, and 48 + 24 = 72 together.\n#### 72"
QUESTIONS = {
    Sample("", "", "15", 0, question="Ann has 23 apples and gives 8 away. How many are left?"): [
        Case("all right", [LEFT] * 4),
        Case("all wrong alike", [ALONG] * 4),
        Case("one of four right", [LEFT, ALONG, ALONG, "8 apples\n#### 8"]),
        Case("no answers", ["Apples are fruit."] * 4),
    ],
    Sample("", "", "72", 1, question="Eva sold 48 clips in April and half as many in May. How many in all?"): [
        Case("right, one is long", [SOLD, SOLD, SOLD, "so " * 2000 + SOLD]),
        Case("right, all follow", [SOLD] * 4, [1.0] * 4),
        Case("right, two follow", [SOLD] * 4, [1.0, 1.0, 0.0, 0.0]),
    ],
}


def main(args: list[str]) -> None:
    """Show the demo that the arguments name.

    Raises:
        ValueError: if they do not name one.
    """
    if args != [*DEMOS]:
        raise ValueError(f"write lit-rl demo {DEMOS[0]}; there is no other demo.")
    for sample, cases in QUESTIONS.items():
        print(f"{sample.question} ({sample.reference})")
        print(f"  {'four answers':<19}" + "".join(f"{name:>7}" for name in [*COLUMNS][:-1]) + "  responses")
        for case in cases:
            print(f"  {case.title:<19}" + _scores(sample, case))
        print()
    for name, meaning in COLUMNS.items():
        print(f"{name:>9}  {meaning}")


def _scores(sample: Sample, case: Case) -> str:
    """The columns of a case."""
    rollouts, s_cf = written_rollouts([sample], case.answers), torch.tensor(case.follow)
    question, response = RegimeW(), RegimeW(per="response")
    parts = question.scores(rollouts, s_cf)
    parts["reward"] = question.total(parts)
    shared = "".join(f"{float(parts[name][0]):7.2f}" for name in COLUMNS if name in parts)  # equal for all answers
    return shared + "  " + " ".join(f"{value:.1f}" for value in response.total(response.scores(rollouts, s_cf)).tolist())
