"""Groups of any size: rows of each group, tables of one size, values for groups and for rows."""

import torch

from lit_rl.groups import group_tables, per_group, rows_of, within_groups

GROUP = torch.tensor([1, 0, 1, 2, 0, 1, 3, 3])
"""Groups of 2, 3, 1 and 2 rows, whose rows do not stand together."""
VALUES = torch.tensor([10.0, 1.0, 20.0, 5.0, 2.0, 60.0, 7.0, 8.0])


def test_rows_of_a_group_stand_in_their_own_order():
    assert [rows.tolist() for rows in rows_of(GROUP)] == [[1, 4], [0, 2, 5], [3], [6, 7]]


def test_there_is_one_table_for_each_size_of_group():
    assert [table.tolist() for table in group_tables(GROUP)] == [[[3]], [[1, 4], [6, 7]], [[0, 2, 5]]]


def test_groups_of_one_size_are_one_table():
    assert [table.tolist() for table in group_tables(torch.tensor([0, 0, 1, 1]))] == [[[0, 1], [2, 3]]]


def test_a_value_for_each_group_stands_in_the_order_of_groups():
    # 1 + 2, 10 + 20 + 60, 5, 7 + 8
    assert per_group(GROUP, VALUES, lambda table: table.sum(1)).tolist() == [3.0, 90.0, 5.0, 15.0]


def test_a_value_for_each_row_stands_in_the_order_of_rows():
    # Less the means 30, 1.5, 5 and 7.5
    centered = within_groups(GROUP, VALUES, lambda table: table - table.mean(1, keepdim=True))
    assert centered.tolist() == [-20.0, -0.5, -10.0, 0.0, 0.5, 30.0, -0.5, 0.5]


def test_the_function_is_called_once_for_each_size():
    shapes = []
    per_group(GROUP, VALUES, lambda table: shapes.append(tuple(table.shape)) or table.sum(1))
    assert shapes == [(1, 1), (2, 2), (1, 3)]


def test_rows_may_have_several_values():
    values = torch.stack([VALUES, -VALUES], dim=1)
    assert per_group(GROUP, values, lambda table: table.amax(1)).tolist() == [[2, -1], [60, -10], [5, -5], [8, -7]]
    assert torch.equal(within_groups(GROUP, values, lambda table: table * 2), values * 2)
