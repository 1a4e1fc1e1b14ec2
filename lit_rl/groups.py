"""Groups of rows: values that are compared with each other, in groups of any size.

``group`` is (N), the number of each row's group, from 0 without gaps. Functions get the groups of one size at a time as a table
(n, size, ...), so that arithmetic within groups needs no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def rows_of(group: Tensor) -> Sequence[Tensor]:
    """Row numbers of each group, in ascending order.

    Example: group 0 1 0 1 1 gives [0, 2] and [1, 3, 4].
    """
    # Stable, so that the rows of a group stay in order.
    return torch.split(group.argsort(stable=True), group.bincount().tolist())


def group_tables(group: Tensor) -> list[Tensor]:
    """Row numbers of all groups: a (n, size) table for each size that groups have, groups in ascending order.

    Example: group 0 0 1 1 2 gives [[4]] and [[0, 1], [2, 3]].
    """
    by_size: dict[int, list[Tensor]] = {}
    for rows in rows_of(group):
        by_size.setdefault(len(rows), []).append(rows)
    return [torch.stack(by_size[size]) for size in sorted(by_size) if size]


def per_group(group: Tensor, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """One value for each group.

    Args:
        group: (N) group numbers.
        values: (N, ...).
        function: (n, size, ...) values of n groups -> (n, ...), called once for each size of group.

    Returns:
        (groups, ...).
    """
    tables = group_tables(group)
    # (groups, ...), by size of group; put into the order of group numbers below
    found = torch.cat([function(values[rows]) for rows in tables])
    return torch.empty_like(found).index_copy(0, torch.cat([group[rows[:, 0]] for rows in tables]), found)


def within_groups(group: Tensor, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """One value for each row, from the values of its group.

    Args:
        group: (N) group numbers.
        values: (N, ...).
        function: (n, size, ...) values of n groups -> (n, size, ...), called once for each size of group.

    Returns:
        (N, ...), rows in their own order.
    """
    tables = group_tables(group)
    # (N, ...), by size of group; put into the order of rows below
    found = torch.cat([function(values[rows]).flatten(0, 1) for rows in tables])
    return torch.empty_like(found).index_copy(0, torch.cat([rows.flatten() for rows in tables]), found)
