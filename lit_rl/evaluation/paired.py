"""Statistics of two policies that answered the same questions: difference of accuracies and McNemar's exact test."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from scipy.stats import binomtest

from lit_rl.evaluation.metrics import wilson_interval


class PairedCounts(NamedTuple):
    """Questions by which of two policies answered them right."""

    both: int
    first: int
    """Right by the first policy alone."""
    second: int
    """Right by the second policy alone."""
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
        """Counts of the answers to the same questions, in the same order."""
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def difference(self) -> float:
        """Accuracy of the second policy minus accuracy of the first; 0 without questions."""
        return (self.second - self.first) / max(1, sum(self))


def paired_interval(counts: PairedCounts) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, second minus first (Newcombe 1998b, method 10).

    With the Wilson limits l and u of each accuracy p, and the correlation phi of right answers:

        low  = d - sqrt((p2 - l2)^2 - 2 phi (p2 - l2) (u1 - p1) + (u1 - p1)^2)
        high = d + sqrt((u2 - p2)^2 - 2 phi (u2 - p2) (p1 - l1) + (p1 - l1)^2)

    Unlike the interval of 1.96 standard errors it has a width if no question changed sides, and it stays between -1 and 1.
    Source: Statistics in Medicine 17, 2635-2650.

    Example: 1 question right by both of two policies, 1 by the first alone, 7 by the second alone and 12 by neither give
    0.026 to 0.507.
    """
    n = sum(counts)
    if n == 0:
        return -1.0, 1.0
    p1, p2 = (counts.both + counts.first) / n, (counts.both + counts.second) / n
    (l1, u1), (l2, u2) = wilson_interval(p1 * n, n), wilson_interval(p2 * n, n)
    phi = _correlation(counts)
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    above = (u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2
    # Rounding may make a sum of 0 negative.
    return counts.difference - sqrt(max(0.0, below)), counts.difference + sqrt(max(0.0, above))


def mcnemar(counts: PairedCounts) -> float:
    """p-value of McNemar's exact test: how likely such a split of the questions that changed sides is by chance alone.

    If both policies are equally good, each question that only one of them has right is as likely the first policy's as the
    second's; the test is the two-sided binomial test of that (McNemar 1947). Without such questions the value is 1.
    """
    changed = counts.first + counts.second
    return float(binomtest(counts.second, changed, 0.5).pvalue) if changed else 1.0


def _correlation(counts: PairedCounts) -> float:
    """Correlation phi of right answers, a positive one corrected for continuity; 0 if a policy has all right or all wrong."""
    both, first, second, neither = counts
    scale = sqrt((both + first) * (second + neither) * (both + second) * (first + neither))
    agreement = float(both * neither - first * second)
    # Without the correction equal answers would leave no width at all.
    corrected = max(0.0, agreement - sum(counts) / 2) if agreement > 0 else agreement
    return corrected / scale if scale else 0.0
