"""Majority vote as reward, without labels: test-time reinforcement learning (TTRL, arXiv 2504.16084)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rl.rewards.base import AnswerReward, Reward
from lit_rl.rewards.final_answer import FinalNumber
from lit_rl.rollouts import Rollouts
from lit_rl.types import Sample


class MajorityVote(Reward):
    """1 for a completion whose answer is the most frequent one of its group, else 0; references are not read.

    Among equally frequent answers the earliest is taken. A confident wrong majority is paid as a right one is: watch the
    accuracy on problems with labels. The log has the majority's share of the group's completions as ``agreement``.

    Args:
        correct: reads the answers; default: `FinalNumber`, or else the last number of a completion.
        min_agreement: least share of a group's completions that the majority must have, 0 to 1; a group below it earns 0, and
            so has no gradient.
    """

    name = "majority_vote"

    def __init__(self, correct: AnswerReward | None = None, min_agreement: float = 0.0) -> None:
        if not 0 <= min_agreement <= 1:
            raise ValueError(f"reward.min_agreement is {min_agreement}; write a share from 0 (any majority) to 1 (all agree).")
        self.correct: AnswerReward[Any] = correct or FinalNumber(fallback="last_number")
        self.min_agreement = min_agreement

    def example(self, sample: Sample) -> str:
        return self.correct.example(sample)

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        answers = self.correct.answers(rollouts)
        earned, agreement = torch.zeros(len(rollouts)), torch.zeros(len(rollouts))
        for group in range(rollouts.num_groups):
            rows = rollouts.rows_of([group]).tolist()
            winner = majority([answers[row] for row in rows])
            votes = torch.tensor([float(winner is not None and answers[row] == winner) for row in rows])
            agreement[rows] = votes.mean()
            if votes.sum() >= self.min_agreement * len(rows):
                earned[rows] = votes
        return {self.name: earned, "agreement": agreement}

    def score(self, rollouts: Rollouts) -> Tensor:
        return self.parts(rollouts)[self.name]


def majority(answers: Sequence[Hashable | None]) -> Hashable | None:
    """Most frequent answer, the earliest of several; None if no completion has an answer."""
    # Among equals `most_common` keeps the order of first appearance, so that every run picks the same answer.
    counted = Counter(answer for answer in answers if answer is not None)
    return counted.most_common(1)[0][0] if counted else None
