"""Groups of rows: values of rows that are compared with each other, whatever the sizes of the groups.

``group`` is (N), the number of each row's group, from 0 without gaps. Functions get the groups of one size at a time as a table
(n, size, ...), so that arithmetic within groups needs no padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def group_tables(group: Tensor) -> list[Tensor]:
    """Row numbers of all groups: a (n, size) table for each size that groups have, groups in ascending order.

    Example: group 0 0 1 1 2 gives [[0, 1], [2, 3]] and [[4]].
    """
    order, sizes = group.argsort(stable=True), group.bincount()
    starts = sizes.cumsum(0) - sizes
    return [
        order[starts[sizes == size, None] + torch.arange(size, device=group.device)] for size in sizes.unique().tolist() if size
    ]


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
    found = torch.cat([function(values[rows]).flatten(0, 1) for rows in tables])
    return torch.empty_like(found).index_copy(0, torch.cat([rows.flatten() for rows in tables]), found)
