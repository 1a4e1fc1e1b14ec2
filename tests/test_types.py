"""The containers: padding, selecting, merging, and the trip through a checkpoint file."""

import pytest
import torch
from conftest import tiny_spec

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rollouts import Rollouts, Support
from lit_rl.types import TokenBatch


def two_groups() -> Rollouts:
    """Two prompts of three and one tokens, two completions each, everything filled in."""
    prompts = prompts_of([4, 5, 6], [7])
    settings = {
        "texts": ["a", "b", "c", "d"],
        "rewards": torch.tensor([1.0, 0.0, 1001.0, 0.5]),
        "parts": {"correct": torch.tensor([1.0, 0.0, 1.0, 0.0])},
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None].expand(4, 3).clone(),
        "ref_logprobs": torch.full((4, 3), -2.0),
        "support": Support(
            torch.tensor([1, 2, 2, 3, 7, 8, 4, 5, 6], dtype=torch.int32),
            torch.tensor([[2, 0, 1], [3, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.int32),
        ),
    }
    return rollouts_of(prompts, 2, [[1, 2, 2], [3], [4, 5], [6]], **settings)


# --- prompts -----------------------------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left():
    batch = prompts_of([4, 5, 6], [7])
    assert batch.ids.tolist() == [[4, 5, 6], [PAD, PAD, 7]]
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]


def test_the_mask_comes_from_lengths_where_a_prompt_holds_the_pad_token():
    batch = prompts_of([PAD, 5], [7])
    assert batch.mask.tolist() == [[True, True], [False, True]]


def test_selected_prompts_lose_the_padding_that_none_of_them_needs():
    batch = prompts_of([4, 5, 6], [7], [8, 3]).select([2, 1])
    assert batch.ids.tolist() == [[8, 3], [PAD, 7]]
    assert batch.mask.tolist() == [[True, True], [False, True]]


def test_selected_prompts_keep_their_completions_and_samples():
    batch = prompts_of([4, 5, 6], [7], [8, 3], completions=[[1], [2], [3]]).select([2, 0])
    assert batch.completions == [[3], [1]]
    assert batch.numbers == [102, 100]


def test_moving_prompts_moves_their_tensors_and_keeps_the_rest():
    batch = prompts_of([4, 5], [7], completions=[[1], [2]]).to("meta")
    assert batch.ids.is_meta
    assert batch.mask.is_meta
    assert batch.completions == [[1], [2]]
    assert batch.numbers == [100, 101]


# --- whole sequences ---------------------------------------------------------------------------------------------


def test_a_token_batch_is_prompt_and_completion_padded_on_the_right():
    batch = TokenBatch.from_prompts(prompts_of([4, 5, 6], [7], completions=[[1, 2], [3]]), PAD, completion_only=True)
    assert batch.ids.tolist() == [[4, 5, 6, 1, 2], [7, 3, PAD, PAD, PAD]]
    assert batch.lengths.tolist() == [5, 2]


def test_targets_of_completions_leave_out_prompt_and_padding():
    batch = TokenBatch.from_prompts(prompts_of([4, 5, 6], [7], completions=[[1, 2], [3]]), PAD, completion_only=True)
    assert batch.target.int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]


def test_targets_of_all_tokens_leave_out_the_first_and_padding():
    batch = TokenBatch.from_prompts(prompts_of([4, 5, 6], [7], completions=[[1, 2], [3]]), PAD, completion_only=False)
    assert batch.target.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]


def test_a_completion_that_ends_in_the_pad_token_is_a_target_to_its_end():
    batch = TokenBatch.from_prompts(prompts_of([4], [7], completions=[[1, PAD], [2, 2, PAD]]), PAD, completion_only=True)
    assert batch.target.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


def test_the_first_token_after_an_empty_prompt_is_no_target():
    batch = TokenBatch.from_prompts(prompts_of([4], [], completions=[[1], [2, 3]]), PAD, completion_only=True)
    assert batch.target.int().tolist() == [[0, 1], [0, 1]]


def test_selected_sequences_are_cut_to_the_longest_of_them():
    batch = TokenBatch.from_prompts(prompts_of([4, 5, 6], [7], [8], completions=[[1], [3], [2]]), PAD, True).select([2, 1])
    assert batch.ids.tolist() == [[8, 2], [7, 3]]
    assert batch.target.int().tolist() == [[0, 1], [0, 1]]
    assert batch.mask.all()


# --- rollouts ----------------------------------------------------------------------------------------------------


def test_the_mask_of_rollouts_comes_from_lengths_where_the_pad_token_was_sampled():
    rollouts = rollouts_of(prompts_of([4]), 2, [[0, 0, 1], [0]])
    assert rollouts.mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rollouts_continue_their_prompts_group_by_group():
    assert two_groups().prompt.tolist() == [0, 0, 1, 1]


def test_selecting_a_prompt_takes_its_whole_group():
    picked = two_groups().select([1])
    assert picked.texts == ["c", "d"]
    assert picked.rewards.tolist() == [1001.0, 0.5]
    assert picked.parts["correct"].tolist() == [1.0, 0.0]
    assert picked.advantages[:, 0].tolist() == [0.5, -0.5]
    assert picked.prompts.numbers == [101]
    assert picked.prompt.tolist() == [0, 0]


def test_selected_groups_are_cut_to_their_longest_completion_and_prompt():
    picked = two_groups().select([1])
    assert picked.completion_ids.tolist() == [[4, 5], [6, 0]]
    assert picked.logprobs.tolist() == [[-0.625, -0.75], [-0.875, 0.0]]
    assert picked.ref_logprobs.shape == (2, 2)
    assert picked.prompts.ids.tolist() == [[7]]


def test_selected_groups_stand_in_the_order_asked_for():
    picked = two_groups().select([1, 0])
    assert picked.texts == ["c", "d", "a", "b"]
    assert picked.prompt.tolist() == [0, 0, 1, 1]
    assert picked.prompts.numbers == [101, 100]


def test_moving_rollouts_moves_every_tensor():
    moved = two_groups().to("meta")
    tensors = [*moved._tensors().values(), moved.parts["correct"], moved.support.ids, moved.support.counts, moved.prompts.ids]
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


def repeated() -> Rollouts:
    """Six rows of two prompts; rows 0 and 2 are equal, and 3, 4 and 5."""
    prompts = prompts_of([4, 5, 6], [7])
    rows = [[8, 2], [3], [8, 2], [8, 2], [8, 2], [8, 2]]
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]])
    return rollouts_of(
        prompts, 3, rows, logprobs=logprobs, advantages=torch.tensor([0.5, -1.0, 0.5, 2.0, 2.0, 2.0])[:, None].repeat(1, 2)
    )


def test_equal_rows_of_one_prompt_become_one_with_their_count():
    merged = repeated().merge_duplicates()
    assert merged.completion_ids.tolist() == [[8, 2], [3, 0], [8, 2]]
    assert merged.multiplicity.tolist() == [2.0, 1.0, 3.0]


def test_a_merged_row_still_continues_its_prompt():
    assert repeated().merge_duplicates().prompt.tolist() == [0, 0, 1]


def test_merging_twice_still_counts_every_row():
    assert repeated().merge_duplicates().merge_duplicates().multiplicity.tolist() == [2.0, 1.0, 3.0]


@pytest.mark.parametrize("field", ["advantages", "temperature", "logprobs", "old_logprobs", "ref_logprobs", "completion_ids"])
def test_rows_that_differ_in_one_value_are_not_merged(field):
    rollouts = repeated()
    rollouts.ref_logprobs, rollouts.old_logprobs = torch.full((6, 2), -1.0), torch.full((6, 2), -1.5)
    changed = getattr(rollouts, field)
    changed[(2, 1) if changed.dim() == 2 else 2] += 1
    assert rollouts.merge_duplicates().multiplicity.tolist() == [1.0, 1.0, 1.0, 3.0]


def test_merged_rows_have_the_loss_and_gradient_of_all_rows():
    spec = tiny_spec("gpt2", "float64")
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()

    def loss_and_gradient(rollouts: Rollouts) -> tuple[float, list[torch.Tensor]]:
        ratio = (policy.score(rollouts).logprobs - rollouts.logprobs).exp()
        loss = -(ratio * rollouts.advantages * rollouts.multiplicity[:, None] * rollouts.mask).sum()
        return float(loss.detach()), torch.autograd.grad(loss, list(policy.parameters()))

    merged = repeated().merge_duplicates()
    assert len(merged) == 3
    loss, gradient = loss_and_gradient(repeated())
    merged_loss, merged_gradient = loss_and_gradient(merged)
    assert merged_loss == pytest.approx(loss, rel=1e-12)
    assert all((a - b).norm() <= 1e-10 * b.norm() for a, b in zip(merged_gradient, gradient, strict=True))


# --- checkpoints -------------------------------------------------------------------------------------------------


def reloaded(rollouts: Rollouts, folder) -> Rollouts:
    torch.save(rollouts.state_dict(), folder / "rollouts.pt")
    return Rollouts.from_state(torch.load(folder / "rollouts.pt", weights_only=True))


def test_rollouts_come_back_from_a_weights_only_checkpoint(tmp_path):
    before = two_groups()
    after = reloaded(before, tmp_path)
    assert {name: value.tolist() for name, value in after._tensors().items()} == {
        name: value.tolist() for name, value in before._tensors().items()
    }
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
    assert after.ref_logprobs is None


def test_tensors_keep_their_types_in_a_checkpoint(tmp_path):
    before = two_groups()
    assert {name: value.dtype for name, value in reloaded(before, tmp_path)._tensors().items()} == {
        name: value.dtype for name, value in before._tensors().items()
    }
