"""Sizes that divide or are refused with ones that do, and parts of nearly equal cost."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.training.batch_plan import BatchPlan, balanced_parts


def plan(prompts: int, ranks: int = 1, minibatches: int = 1, accumulate: int = 1, epochs: int = 1) -> BatchPlan:
    return BatchPlan(prompts, ranks, 8, epochs, minibatches, accumulate)


def test_steps_and_micro_batches_multiply_up():
    # 2 passes x 4 minibatches = 8 optimizer steps, of 3 micro-batches each
    sizes = plan(48, ranks=2, minibatches=4, accumulate=3, epochs=2)
    assert sizes.steps == 8
    assert sizes.micro_batches == 24


def test_the_table_names_every_size():
    rows = dict(plan(48, ranks=2, minibatches=4, accumulate=3, epochs=2).rows())
    assert rows == {
        "prompts per batch": "48 over 2 rank(s)",
        "completions per prompt": "8",
        "rows per batch": "384",
        "optimizer steps per batch": "2 epoch(s) x 4 minibatch(es) = 8",
        "rows per optimizer step": "96",
        "micro-batches per step and rank": "3, about 2 prompts each",
    }


@pytest.mark.parametrize(
    ("sizes", "low", "high"),
    [
        ({"prompts": 10, "minibatches": 4}, 8, 12),
        ({"prompts": 10, "ranks": 2, "minibatches": 2}, 8, 12),
        ({"prompts": 1, "ranks": 2}, 2, 4),
        # It divides, but leaves fewer prompts than micro-batches.
        ({"prompts": 8, "ranks": 2, "minibatches": 2, "accumulate": 3}, 12, 16),
        ({"prompts": 13, "ranks": 2, "minibatches": 2, "accumulate": 3}, 12, 16),
        ({"prompts": 7, "ranks": 2, "accumulate": 4}, 8, 10),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(sizes, low, high):
    with pytest.raises(ValueError, match=rf"^data\.batch_size {sizes['prompts']} .*; the nearest that do: {low} and {high}\.$"):
        plan(**sizes)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_the_sizes_that_are_named_work_and_nothing_between_them_does(prompts, ranks, minibatches, accumulate):
    def works(count: int) -> bool:
        try:
            plan(count, ranks, minibatches, accumulate)
        except ValueError:
            return False
        return True

    if not works(prompts):
        with pytest.raises(ValueError, match="nearest") as error:
            plan(prompts, ranks, minibatches, accumulate)
        low, high = (int(word.strip(".")) for word in str(error.value).split(": ")[1].split(" and "))
        assert works(low)
        assert works(high)
        assert low < high
        assert not any(works(count) for count in range(low + 1, high))
        assert low < prompts < high or not any(works(count) for count in range(low))


# --- balanced parts ----------------------------------------------------------------------------------------------


def test_the_dearest_items_are_dealt_first():
    # 5 to the first, 4 to the second, 3 to the second (4 < 5), 3 to the first (5 < 7)
    assert balanced_parts([5, 4, 3, 3], 2) == [[0, 3], [1, 2]]


def test_one_part_holds_everything():
    assert balanced_parts([1, 2, 3], 1) == [[0, 1, 2]]


def test_items_without_cost_are_dealt_to_every_part_too():
    assert balanced_parts([0, 0, 0], 2) == [[0, 2], [1]]


COSTS = st.lists(st.integers(0, 100), min_size=1, max_size=30)


@settings(deadline=None)
@given(COSTS, st.data())
def test_every_item_is_dealt_once_and_every_part_has_one(costs, data):
    parts = balanced_parts(costs, data.draw(st.integers(1, len(costs))))
    assert sorted(item for part in parts for item in part) == list(range(len(costs)))
    assert all(parts)
    assert all(part == sorted(part) for part in parts)


@settings(deadline=None)
@given(COSTS, st.data())
def test_parts_differ_by_no_more_than_one_item(costs, data):
    loads = [sum(costs[item] for item in part) for part in balanced_parts(costs, data.draw(st.integers(1, len(costs))))]
    assert max(loads) - min(loads) <= max(costs)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=7), st.integers(1, 3))
def test_the_dearest_part_is_within_a_third_of_the_best_split(costs, parts):
    parts = min(parts, len(costs))
    loads = [sum(costs[item] for item in part) for part in balanced_parts(costs, parts)]
    best = min(
        max(sum(cost for cost, part in zip(costs, split, strict=True) if part == number) for number in range(parts))
        for split in product(range(parts), repeat=len(costs))
    )
    # Graham 1969: at most 4/3 - 1/(3 parts) times the best.
    assert 3 * parts * max(loads) <= (4 * parts - 1) * best
