"""Positions of structured samples: where they lie in a text, and their numbers."""

import numpy as np

from lit_rl.datamodules.positions import Positions
from lit_rl.text.windows import Windows


def test_positions_of_structured_samples_lie_inside_the_solution():
    windows = Windows.of_documents([[1, 2]], [[3, 4, 5]])
    positions = Positions(windows, [bytes([65 + number]) for number in range(6)], labels_length=2)
    shown = [(list(each.context), list(each.target), each.reference) for each in (positions[n] for n in range(len(positions)))]
    assert shown == [([1, 2], [3, 4], "D│E"), ([1, 2, 3], [4, 5], "E│F"), ([1, 2, 3, 4], [5], "F")]


def test_a_position_keeps_its_number_when_others_are_left_out():
    positions = Positions(Windows.of_documents([[1, 2]], [[3, 4, 5]]), [b"x"] * 6, 1)
    positions.keep(np.array([False, True, True]))
    assert [positions[place].number for place in range(len(positions))] == [1, 2]
