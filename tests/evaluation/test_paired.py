"""Paired statistics against published examples and statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference_test
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from lit_rl.evaluation.paired import PairedCounts, mcnemar, paired_interval

TABLES = [PairedCounts(*table) for table in np.random.default_rng(0).integers(0, 40, (200, 4)).tolist()]
EQUAL = PairedCounts(25, 0, 0, 25)


def test_answers_to_the_same_questions_are_counted_by_who_is_right():
    first, second = [True, True, False, False, False], [True, False, True, True, False]
    counts = PairedCounts.of(first, second)
    assert counts == (1, 1, 2, 1)
    assert counts.difference == (2 - 1) / 5


def test_the_interval_is_that_of_a_published_example():
    # Fagerland, Lydersen and Laake 2014, airway reactivity: 2 and 8 of 21, 0.026 to 0.507.
    assert paired_interval(PairedCounts(1, 1, 7, 12)) == pytest.approx((0.026, 0.507), abs=5e-4)


def test_without_correlation_the_interval_is_that_of_two_independent_samples():
    free = [counts for counts in TABLES if 0 <= counts.both * counts.neither - counts.first * counts.second <= sum(counts) / 2]
    assert free
    for counts in free:
        n, right = sum(counts), (counts.both + counts.second, counts.both + counts.first)
        expected = confint_proportions_2indep(right[0], n, right[1], n, method="newcomb")
        assert paired_interval(counts) == pytest.approx(expected, abs=1e-6)


def test_the_interval_is_built_from_wilson_limits_and_the_correlation_of_right_answers():
    for counts in TABLES:
        n = sum(counts)
        cells = np.repeat([(1, 1), (1, 0), (0, 1), (0, 0)], counts, axis=0)
        phi = np.corrcoef(cells.T)[0, 1]
        spread = n * n * cells[:, 0].std() * cells[:, 1].std()
        phi = max(0.0, phi - n / 2 / spread) if phi > 0 else phi
        p = cells.mean(0)
        low, high = np.array([proportion_confint(cells[:, k].sum(), n, method="wilson") for k in (0, 1)]).T
        below, above = (p[1] - low[1], high[0] - p[0]), (high[1] - p[1], p[0] - low[0])
        lengths = [np.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in (below, above)]
        expected = (p[1] - p[0] - lengths[0], p[1] - p[0] + lengths[1])
        assert paired_interval(counts) == pytest.approx(expected, abs=1e-6)


def test_mcnemars_test_is_that_of_statsmodels():
    for counts in TABLES:
        expected = reference_test([[counts.both, counts.first], [counts.second, counts.neither]], exact=True).pvalue
        assert mcnemar(counts) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_differ_by_nothing_and_leave_an_interval_around_0():
    assert EQUAL.difference == 0
    assert mcnemar(EQUAL) == 1.0
    low, high = paired_interval(EQUAL)
    assert low == pytest.approx(-high)
    assert 0.01 < high < 0.1


def test_the_interval_stays_within_its_bounds_at_the_corners():
    for counts in (PairedCounts(0, 9, 0, 0), PairedCounts(0, 0, 9, 0), PairedCounts(9, 0, 0, 0), PairedCounts(0, 0, 0, 9)):
        low, high = paired_interval(counts)
        assert -1 <= low <= counts.difference <= high <= 1


def test_without_questions_everything_is_possible():
    assert paired_interval(PairedCounts(0, 0, 0, 0)) == (-1.0, 1.0)
    assert mcnemar(PairedCounts(0, 0, 0, 0)) == 1.0
