"""Multi-armed bandit: which arms to draw from, by what they have earned so far.

Rewards of any scale are taken. An arm's value is the mean of its rewards; how far it may be off is judged by the variance of
all rewards together, s^2, and by the number of the arm's rewards, n:

    Thompson sampling   value ~ N(mean, s^2 / n)                       (Thompson 1933; arXiv 1209.3353 for normal rewards)
    UCB                 value = mean + c s sqrt(2 ln(sum of n) / n)    (UCB1, Auer et al. 2002, for rewards of deviation s)

An arm without rewards comes before all others.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["thompson", "ucb"]
Values = NDArray[np.float64]


class ArmStatistics:
    """Counts and sums of the rewards of A arms.

    Args:
        arms: A.
        decay: factor on all earlier rewards at each update, above 0 and up to 1; 1 forgets nothing.
    """

    def __init__(self, arms: int, decay: float = 1.0) -> None:
        self.decay = decay
        self.totals: Values = np.zeros((3, arms))  # number, sum and sum of squares of each arm's rewards

    def add(self, totals: Values) -> None:
        """Add the rewards of a rollout: (3, A) number, sum and sum of squares by arm."""
        self.totals = self.decay * self.totals + totals

    @property
    def means(self) -> Values:
        """(A) mean reward of each arm, 0 without rewards."""
        count, total, _ = self.totals
        return np.divide(total, count, out=np.zeros_like(total), where=count > 0)

    @property
    def deviation(self) -> float:
        """Standard deviation of all rewards together."""
        count, total, squares = self.totals.sum(1)
        # The difference of two large numbers may come out below 0.
        return float(np.sqrt(max(0.0, squares / count - (total / count) ** 2))) if count else 0.0

    def choose(self, method: Method, size: int, draws: np.random.Generator, exploration: float = 1.0) -> list[int]:
        """Arms of the highest values, the highest first.

        Args:
            method: kind of bandit.
            size: number of different arms.
            draws: source of randomness; equal values are put in a random order.
            exploration: factor on the width of the bound of ``ucb``, c.
        """
        order = draws.permutation(len(self.totals[0]))
        width = self.deviation / np.sqrt(np.maximum(self.totals[0], 1e-12))
        if method == "ucb":
            values = self.means + exploration * width * np.sqrt(2 * np.log(max(1.0, self.totals[0].sum())))
        else:
            values = draws.normal(self.means, width)
        values[self.totals[0] == 0] = np.inf
        # Stable, so that equal values keep the random order.
        ranked = order[np.argsort(-values[order], kind="stable")]
        return [int(arm) for arm in ranked[:size]]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only."""
        return {"totals": self.totals.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.totals = np.array(state["totals"], dtype=np.float64)
