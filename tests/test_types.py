"""Batches of prompts and of whole sequences: padding, selecting, moving, and the trip through a checkpoint."""

import torch
from tiny_rollouts import PAD, prompts_of

from lit_rl.types import PromptBatch, TokenBatch

# --- prompts -----------------------------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left():
    batch = prompts_of([4, 5, 6], [7])
    assert batch.ids.tolist() == [[4, 5, 6], [PAD, PAD, 7]]
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]


def test_the_mask_comes_from_lengths_if_a_prompt_holds_the_pad_token():
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


def test_joined_prompts_are_padded_to_the_widest():
    joined = PromptBatch.join([prompts_of([4], completions=[[1]]), prompts_of([5, 6, 7], completions=[[2]])])
    assert joined.ids.tolist() == [[0, 0, 4], [5, 6, 7]]
    assert joined.mask.tolist() == [[False, False, True], [True, True, True]]
    assert joined.completions == [[1], [2]]
    assert joined.numbers == [100, 100]


def test_prompts_come_back_from_a_weights_only_checkpoint(tmp_path):
    before = prompts_of([4, 5, 6], [7], completions=[[1], [2, 3]])
    torch.save(before.state_dict(), tmp_path / "prompts.pt")
    after = PromptBatch.from_state(torch.load(tmp_path / "prompts.pt", weights_only=True))
    assert after.ids.tolist() == before.ids.tolist()
    assert after.mask.tolist() == before.mask.tolist()
    assert (after.completions, after.samples) == (before.completions, before.samples)


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
