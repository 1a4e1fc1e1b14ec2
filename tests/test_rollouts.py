"""Rollouts and their support: fields, groups, selecting, merging, and the trip through a checkpoint file."""

import pytest
import torch
from tiny_rollouts import prompts_of, repeated, rollouts_of

from lit_rl.fields import field
from lit_rl.rollouts import PerToken, Rollouts
from lit_rl.support import Support


def two_groups(kind: type[Rollouts] = Rollouts, **fields) -> Rollouts:
    """Two prompts of three and one tokens, two completions each, everything filled in."""
    plain = rollouts_of(prompts_of([4, 5, 6], [7]), 2, [[1, 2, 2], [3], [4, 5], [6]])
    settings = {
        "rewards": torch.tensor([1.0, 0.0, 1001.0, 0.5]),
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None].expand(4, 3).clone(),
        "ref_logprobs": torch.full((4, 3), -2.0),
    }
    support = Support(
        torch.tensor([1, 2, 2, 3, 7, 8, 4, 5, 6], dtype=torch.int32),
        torch.tensor([[2, 0, 1], [3, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.int32),
    )
    parts = {"correct": torch.tensor([1.0, 0.0, 1.0, 0.0])}
    texts = ["a", "b", "c", "d"]
    return kind(plain.prompts, texts=texts, support=support, parts=parts, **{**plain.tensors, **settings, **fields})


def mixed_groups(**fields) -> Rollouts:
    """Group 0: a completion of prompt 100 and one of 101; group 1: three of 102; group 2: one of 103."""
    prompts = prompts_of([4], [5, 5], [6], [7])
    rows = [[1, 1], [2], [3, 3, 3], [3], [4, 4], [5]]
    settings = {"prompt": torch.tensor([0, 1, 2, 2, 2, 3]), "group": torch.tensor([0, 0, 1, 1, 1, 2])}
    return rollouts_of(prompts, 1, rows, **{**settings, **fields})


def reloaded(rollouts: Rollouts, folder) -> Rollouts:
    torch.save(rollouts.state_dict(), folder / "rollouts.pt")
    return type(rollouts).from_state(torch.load(folder / "rollouts.pt", weights_only=True))


# --- fields ------------------------------------------------------------------------------------------------------


class Wider(Rollouts):
    """Rollouts with one field more."""

    confidence: PerToken = field()
    """(N, T) float32."""


def test_a_new_field_is_one_edit(tmp_path):
    confidence = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0], [0.5, 0.6, 0.0], [0.7, 0.0, 0.0]])
    wide = two_groups(Wider, confidence=confidence)
    assert wide.select([1]).confidence.tolist() == confidence[2:, :2].tolist()
    assert Wider.join([wide.select([1]), wide]).confidence.tolist() == confidence[[2, 3, 0, 1, 2, 3]].tolist()
    assert wide.to("meta").confidence.is_meta
    assert reloaded(wide, tmp_path).confidence.tolist() == confidence.tolist()
    assert wide.merge_duplicates().confidence.tolist() == confidence.tolist()
    assert not two_groups().has("confidence")


def test_rows_that_differ_in_a_new_field_are_not_merged():
    same = rollouts_of(prompts_of([4]), 2, [[1], [1]], logprobs=torch.zeros(2, 1), entropies=torch.zeros(2, 1)).tensors
    assert len(Wider(prompts_of([4]), **same, confidence=torch.tensor([[0.5], [0.5]])).merge_duplicates()) == 1
    assert len(Wider(prompts_of([4]), **same, confidence=torch.tensor([[0.5], [0.6]])).merge_duplicates()) == 2


def test_a_field_is_not_there_before_it_is_filled():
    rollouts = rollouts_of(prompts_of([4]), 1, [[1, 2]])
    assert not rollouts.has("ref_logprobs")
    with pytest.raises(AttributeError, match=r"^Rollouts have no ref_logprobs yet: nothing has filled the field\.$"):
        rollouts.ref_logprobs  # noqa: B018
    rollouts.ref_logprobs = torch.zeros(1, 2)
    assert rollouts.has("ref_logprobs")
    assert rollouts.ref_logprobs.tolist() == [[0.0, 0.0]]


def test_fields_that_were_not_given_have_their_defaults():
    rollouts = rollouts_of(prompts_of([4], [5]), 2, [[1, 2], [1], [1], [1]])
    plain = Rollouts(rollouts.prompts, **{name: rollouts.tensors[name] for name in REQUIRED})
    assert plain.prompt.tolist() == plain.group.tolist() == [0, 0, 1, 1]
    assert plain.sampled.tolist() == [[True, True], [True, False], [True, False], [True, False]]
    assert (plain.multiplicity.tolist(), plain.rewards.tolist(), plain.in_loss.tolist()) == ([1.0] * 4, [0.0] * 4, [True] * 4)
    assert plain.advantages.tolist() == [[0.0, 0.0]] * 4


REQUIRED = ["completion_ids", "lengths", "truncated", "logprobs", "entropies", "temperature"]


def test_rollouts_need_what_a_sampler_knows():
    tensors = two_groups().tensors
    for name in REQUIRED:
        with pytest.raises(TypeError, match=f"^Rollouts need {name}.$"):
            Rollouts(prompts_of([4], [7]), **{other: value for other, value in tensors.items() if other != name})
        with pytest.raises(TypeError, match=f"^Rollouts need {name}.$"):
            Rollouts(prompts_of([4], [7]), **{**tensors, name: None})


def test_a_field_that_is_not_declared_is_refused():
    with pytest.raises(TypeError, match=r"^Rollouts have no field reward; known are completion_ids, lengths, "):
        two_groups(reward=torch.zeros(4))


# --- masks and groups --------------------------------------------------------------------------------------------


def test_the_mask_of_rollouts_comes_from_lengths_if_the_pad_token_was_sampled():
    rollouts = rollouts_of(prompts_of([4]), 2, [[0, 0, 1], [0]])
    assert rollouts.mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tokens_in_the_loss_are_sampled_tokens_of_rows_in_the_loss():
    sampled = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0]]).bool()
    rollouts = rollouts_of(
        prompts_of([4]), 3, [[1, 2, 3], [1, 2], [1]], sampled=sampled, in_loss=torch.tensor([True, False, True])
    )
    assert rollouts.loss_mask.int().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_rollouts_continue_their_prompts_group_by_group():
    assert two_groups().prompt.tolist() == [0, 0, 1, 1]
    assert [sample.number for sample in two_groups().samples] == [100, 100, 101, 101]


def test_completions_have_no_end_token():
    rollouts = rollouts_of(prompts_of([4]), 2, [[1, 2, 9], [1, 2]], truncated=torch.tensor([False, True]))
    assert rollouts.completions() == [[1, 2], [1, 2]]


def test_rows_per_prompt_are_known_if_all_prompts_have_as_many_in_order():
    assert two_groups().rows_per_prompt == 2
    assert two_groups(prompt=torch.tensor([0, 1, 0, 1])).rows_per_prompt is None
    assert mixed_groups().rows_per_prompt is None


def test_values_of_groups_and_rows_come_from_the_whole_group():
    mixed, values = mixed_groups(), torch.tensor([1.0, 3.0, 1.0, 2.0, 6.0, 5.0])
    assert mixed.num_groups == 3
    assert mixed.per_group(values, lambda table: table.sum(1)).tolist() == [4.0, 9.0, 5.0]
    # Less the means 2, 3 and 5
    centered = mixed.within_groups(values, lambda table: table - table.mean(1, keepdim=True))
    assert centered.tolist() == [-1.0, 1.0, -2.0, -1.0, 3.0, 0.0]


# --- selecting ---------------------------------------------------------------------------------------------------


def test_selecting_a_group_takes_all_its_rows_and_their_prompts():
    picked = two_groups().select([1])
    assert picked.texts == ["c", "d"]
    assert picked.rewards.tolist() == [1001.0, 0.5]
    assert picked.parts["correct"].tolist() == [1.0, 0.0]
    assert picked.advantages[:, 0].tolist() == [0.5, -0.5]
    assert picked.prompts.numbers == [101]
    assert picked.prompt.tolist() == picked.group.tolist() == [0, 0]


def test_selected_groups_are_cut_to_their_longest_completion_and_prompt():
    picked = two_groups().select([1])
    assert picked.completion_ids.tolist() == [[4, 5], [6, 0]]
    assert picked.logprobs.tolist() == [[-0.625, -0.75], [-0.875, 0.0]]
    assert picked.ref_logprobs.shape == picked.sampled.shape == (2, 2)
    assert picked.prompts.ids.tolist() == [[7]]


def test_selected_groups_stand_in_the_order_asked_for():
    picked = two_groups().select([1, 0])
    assert picked.texts == ["c", "d", "a", "b"]
    assert picked.prompt.tolist() == picked.group.tolist() == [0, 0, 1, 1]
    assert picked.prompts.numbers == [101, 100]


def test_a_selected_group_of_several_prompts_brings_them_all():
    picked = mixed_groups().select([2, 0])
    assert picked.completion_ids.tolist() == [[5, 0], [1, 1], [2, 0]]
    assert [sample.number for sample in picked.samples] == [103, 100, 101]
    assert picked.group.tolist() == [0, 1, 1]
    assert mixed_groups().rows_of([2, 0]).tolist() == [5, 0, 1]


def test_rows_of_a_group_need_not_stand_together():
    # Prompts 0 and 2 are group 1, prompts 1 and 3 are group 0.
    rows = rollouts_of(prompts_of([4], [5], [6], [7]), 1, [[1], [2], [3], [4]], group=torch.tensor([1, 0, 1, 0]))
    picked = rows.select([0, 1])
    assert picked.completion_ids[:, 0].tolist() == [2, 4, 1, 3]
    assert [sample.number for sample in picked.samples] == [101, 103, 100, 102]
    assert picked.group.tolist() == [0, 0, 1, 1]


def test_joined_groups_of_several_prompts_stay_together():
    joined = Rollouts.join([mixed_groups(), two_groups_plain(), mixed_groups()])
    assert joined.group.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7]
    numbers = [sample.number for sample in joined.samples]
    assert numbers == [100, 101, 102, 102, 102, 103, 100, 100, 101, 101, 100, 101, 102, 102, 102, 103]
    assert [sample.number for sample in joined.select([5]).samples] == [100, 101]


def two_groups_plain() -> Rollouts:
    return rollouts_of(prompts_of([4], [5]), 2, [[1], [2], [3], [4]])


def test_moving_rollouts_moves_every_tensor():
    moved = two_groups().to("meta")
    tensors = [*moved.tensors.values(), moved.parts["correct"], moved.support.ids, moved.support.counts, moved.prompts.ids]
    assert all(tensor.is_meta for tensor in tensors)


# --- the kept support ---------------------------------------------------------------------------------------------


def test_a_selected_support_keeps_the_rows_own_ids():
    # Row 0 keeps 1 2, nothing, 2; row 1 keeps 3 7 8; row 2 keeps 4, 5; row 3 keeps 6.
    support = two_groups().support.select(torch.tensor([2, 0]), 3)
    assert support.ids.tolist() == [4, 5, 1, 2, 2]
    assert support.counts.tolist() == [[1, 1, 0], [2, 0, 1]]


def test_a_selected_support_of_no_rows_is_empty():
    support = two_groups().support.select(torch.tensor([], dtype=torch.long), 2)
    assert support.ids.tolist() == []
    assert support.counts.shape == (0, 2)


def test_selected_groups_bring_their_support():
    picked = two_groups().select([1])
    assert picked.support.ids.tolist() == [4, 5, 6]
    assert picked.support.counts.tolist() == [[1, 1], [1, 0]]


# --- merging equal rows ------------------------------------------------------------------------------------------


def test_equal_rows_of_one_prompt_become_one_with_their_count():
    merged = repeated().merge_duplicates()
    assert merged.completion_ids.tolist() == [[8, 2], [3, 0], [8, 2]]
    assert merged.multiplicity.tolist() == [2.0, 1.0, 3.0]
    assert merged.prompt.tolist() == merged.group.tolist() == [0, 0, 1]
    assert merged.merge_duplicates().multiplicity.tolist() == [2.0, 1.0, 3.0]


def test_equal_rows_of_two_prompts_in_one_group_are_not_merged():
    rollouts = repeated()
    rollouts.prompt, rollouts.group = torch.tensor([0, 0, 1, 1, 1, 1]), torch.zeros(6, dtype=torch.long)
    rollouts.advantages = torch.full((6, 2), 0.5)
    merged = rollouts.merge_duplicates()
    assert (merged.prompt.tolist(), merged.group.tolist()) == ([0, 0, 1], [0, 0, 0])
    assert merged.multiplicity.tolist() == [1.0, 1.0, 4.0]


def test_rows_that_differ_in_one_value_are_not_merged():
    rollouts = repeated()
    rollouts.ref_logprobs, rollouts.old_logprobs = torch.full((6, 2), -1.0), torch.full((6, 2), -1.5)
    for name in ("advantages", "temperature", "logprobs", "old_logprobs", "ref_logprobs", "completion_ids", "sampled"):
        before = getattr(rollouts, name)
        changed = before.clone()
        changed[(2, 1) if changed.dim() == 2 else 2] = not changed.flatten()[0] if name == "sampled" else 7
        setattr(rollouts, name, changed)
        assert rollouts.merge_duplicates().multiplicity.tolist() == [1.0, 1.0, 1.0, 3.0], name
        setattr(rollouts, name, before)


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_rollouts_come_back_from_a_weights_only_checkpoint(tmp_path):
    before = two_groups()
    after = reloaded(before, tmp_path)
    assert after.tensors.keys() == before.tensors.keys()
    for name, value in before.tensors.items():
        assert after.tensors[name].tolist() == value.tolist(), name
        assert after.tensors[name].dtype == value.dtype, name
    assert after.texts == ["a", "b", "c", "d"]
    assert after.parts["correct"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert after.support.ids.tolist() == before.support.ids.tolist()
    assert after.support.counts.tolist() == before.support.counts.tolist()
    assert after.prompts.ids.tolist() == before.prompts.ids.tolist()
    assert after.prompts.mask.tolist() == before.prompts.mask.tolist()
    assert after.prompts.samples == before.prompts.samples


def test_rollouts_without_options_come_back_without_them(tmp_path):
    after = reloaded(rollouts_of(prompts_of([4]), 2, [[1], [2]]), tmp_path)
    assert after.support is None
    assert not after.has("ref_logprobs")
