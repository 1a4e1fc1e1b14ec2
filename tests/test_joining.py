"""Rollouts joined into one, and taken out of it again."""

import random

import pytest
import torch
from tiny_rollouts import PAD, prompts_of, rollouts_of

from lit_rl.fields import fields_of
from lit_rl.rollouts import Rollouts
from lit_rl.support import Support
from lit_rl.types import PromptBatch


def everything(seed):
    """Random rollouts with every field filled in."""
    draw = random.Random(seed)
    groups, members = draw.randint(1, 3), 2
    prompts = prompts_of(*[[4] * draw.randint(1, 5) for _ in range(groups)], completions=[[n] for n in range(groups)])
    rows = [[draw.randint(1, 8) for _ in range(draw.randint(1, 6))] for _ in range(groups * members)]
    width = max(map(len, rows))
    shape = (len(rows), width)
    counts = torch.tensor([[draw.randint(1, 3) * (t < len(row)) for t in range(width)] for row in rows], dtype=torch.int32)
    behind = torch.arange(width) >= torch.tensor([len(row) for row in rows])[:, None]
    floats = ("advantages", "old_logprobs", "ref_logprobs", "values", "returns")
    by_token = {name: torch.randn(shape).masked_fill(behind, 0) for name in floats}
    by_row = {name: torch.rand(len(rows)) for name in ("rewards", "multiplicity", "temperature")}
    return rollouts_of(
        prompts,
        members,
        rows,
        texts=[f"{seed} {row}" for row in range(len(rows))],
        parts={name: torch.rand(len(rows)) for name in ("correct", "format")},
        in_loss=torch.rand(len(rows)) < 0.5,
        truncated=torch.rand(len(rows)) < 0.5,
        stopped=torch.rand(len(rows)) < 0.5,
        arm=torch.randint(0, 8, (len(rows),)),
        gradient_mask=(torch.rand(shape) < 0.5) & ~behind,
        support=Support(torch.randint(0, 9, (int(counts.sum()),), dtype=torch.int32), counts),
        **by_token,
        **by_row,
    )


def assert_equal(a, b):
    """States of rollouts: tensors to the bit, and everything else."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


def test_rollouts_come_out_of_a_joined_one_as_they_went_in():
    for seed in range(5):
        torch.manual_seed(seed)
        parts = [everything(10 * seed + number) for number in range(3)]
        for part in parts:
            assert all(part.has(name) for name in fields_of(Rollouts)), "a new field must be joined too: fill it in above"
        joined = Rollouts.join(parts)
        first = 0
        for part in parts:
            groups = list(range(first, first + part.num_groups))
            first += len(groups)
            assert_equal(joined.select(groups).state_dict(), part.select(list(range(len(groups)))).state_dict())


def test_joined_prompts_are_padded_on_the_left_and_completions_on_the_right():
    narrow, wide = rollouts_of(prompts_of([4]), 2, [[1], [2]]), rollouts_of(prompts_of([5, 6], [7]), 2, [[3], [3, 8], [8], [9]])
    joined = Rollouts.join([narrow, wide])
    assert joined.prompts.ids.tolist() == [[0, 4], [5, 6], [PAD, 7]]
    assert joined.prompts.mask.int().tolist() == [[0, 1], [1, 1], [0, 1]]
    assert joined.prompts.numbers == [100, 100, 101]
    assert joined.completion_ids.tolist() == [[1, 0], [2, 0], [3, 0], [3, 8], [8, 0], [9, 0]]
    assert joined.lengths.tolist() == [1, 1, 1, 2, 1, 1]
    assert joined.prompt.tolist() == [0, 0, 1, 1, 2, 2]


def test_rollouts_without_options_are_joined_without_them():
    joined = Rollouts.join([rollouts_of(prompts_of([4]), 2, [[1], [2]]) for _ in range(2)])
    assert joined.support is None
    assert not any(joined.has(name) for name in ("old_logprobs", "ref_logprobs", "gradient_mask"))
    assert (joined.texts, joined.parts) == ([], {})


@pytest.mark.parametrize("field", ["gradient_mask", "support", "texts", "correct"])
def test_rollouts_of_which_only_some_have_a_field_are_not_joined(field):
    full, lacking = everything(1), everything(2)
    if field == "correct":
        del lacking.parts[field]
    elif field == "gradient_mask":
        del lacking.gradient_mask
    else:
        setattr(lacking, field, [] if field == "texts" else None)
    for order in ([full, lacking], [lacking, full]):
        with pytest.raises(ValueError, match=f"^rollouts to be joined must all have {field}, or none: fill it in later.$"):
            Rollouts.join(order)


def test_joined_prompts_keep_their_completions():
    joined = PromptBatch.join([prompts_of([4], completions=[[1]]), prompts_of([5, 6], [7], completions=[[2], [3]])])
    assert joined.completions == [[1], [2], [3]]
    assert len(joined) == 3
