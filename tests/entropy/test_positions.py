"""Entropies of positions: which windows are computed, where values go, and the line that describes them."""

from types import SimpleNamespace

import numpy as np

from lit_rl.entropy.positions import attach_entropies, describe_entropies, needed_windows
from lit_rl.text.windows import Windows


def positions(*places: int) -> SimpleNamespace:
    """Some targets of three windows of 2, 3 and 1 targets."""
    windows = Windows.of_documents([[1], [1], [1]], [[5, 5], [6, 6, 6], [7]])
    return SimpleNamespace(windows=windows, places=np.array(places), entropies=None)


def test_windows_that_hold_a_position_are_needed():
    assert needed_windows(positions(0, 1, 5)).tolist() == [0, 2]
    assert needed_windows(positions(2)).tolist() == [1]


def test_values_of_some_windows_go_to_their_targets_and_others_stay_nan():
    chosen = positions(1, 5)
    attach_entropies(chosen, np.array([0, 2]), np.array([0.5, 1.0, 2.0], dtype=np.float32))
    np.testing.assert_array_equal(chosen.entropies, [0.5, 1.0, np.nan, np.nan, np.nan, 2.0])


def test_values_of_all_windows_are_attached_as_they_are():
    chosen, values = positions(0, 2, 5), np.arange(6, dtype=np.float32)
    attach_entropies(chosen, np.arange(3), values)
    assert chosen.entropies is values


def test_entropies_are_described_by_their_quantiles_in_one_line():
    line = describe_entropies(np.linspace(0, 2, 101))
    assert line == (
        "Entropies in nats: 0% 0.000, 10% 0.200, 25% 0.500, 50% 1.000, 75% 1.500, 90% 1.800, 99% 1.980, 100% 2.000."
    )
