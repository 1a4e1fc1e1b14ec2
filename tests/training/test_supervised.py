"""Supervised micro-batches: every row of an optimizer step once, with weights that add up to a mean over its targets."""

from types import SimpleNamespace

import torch
from test_stream import Loader
from tiny_rollouts import PAD, prompts_of

from lit_rl.training.batch_plan import BatchPlan
from lit_rl.training.supervised import SupervisedStream, supervised_rows


class OneBatch(Loader):
    """The batch of prompts that each epoch consists of; completions of 7, 2, 3 and 3 tokens."""

    def __iter__(self):
        return iter([prompts_of([1], [2], [3], [4], completions=[[5] * length for length in (7, 2, 3, 3)])])


def test_a_step_is_cut_by_tokens_and_weighted_by_targets():
    runtime = SimpleNamespace(position=0, sum=lambda values: 2 * values)  # another rank has as many
    stream = SupervisedStream(
        OneBatch(1), BatchPlan(8, 2, 1, 1, 1, 2), runtime, lambda batch: supervised_rows(batch, PAD, None)
    )
    first, second = list(stream)
    # Dealt by tokens, longest first: 8 to the first, 4 and 4 to the second, 3 to the first.
    assert [batch.rows.lengths.tolist() for batch in (first, second)] == [[8, 3], [4, 4]]
    assert [(batch.first, batch.last) for batch in (first, second)] == [(True, False), (False, True)]
    for batch in (first, second):
        assert batch.num_tokens == 30
        torch.testing.assert_close(batch.weights, batch.rows.target / 30)
        assert batch.scale == 4
