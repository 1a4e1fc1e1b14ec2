"""Next-token entropies of windows, against plain forwards of a tiny model."""

import math

import numpy as np
import pytest
import torch
from entropy_windows import all_entropies, sharp_policy, sharp_spec, some_windows

from lit_rl.entropy import compute
from lit_rl.entropy.cache import entropy_key
from lit_rl.entropy.compute import next_token_entropy
from lit_rl.tasks.tokenizers import arithmetic_tokenizer
from lit_rl.text.windows import Windows

KEYED = (sharp_spec(), 0, arithmetic_tokenizer(), 0)
"""Proxy, seed, tokenizer and ``top_k`` of a name."""


@pytest.fixture(scope="module")
def policy():
    return sharp_policy()


@torch.no_grad()
def plain_entropies(policy, windows, top_k=0):
    """One window after another, through the model's own forward, in float64."""
    found = []
    for window in range(len(windows)):
        logits = policy.model.eval()(input_ids=torch.tensor([windows.tokens(window)])).logits[0].double()
        first = int(windows.firsts[window] - windows.starts[window])
        for row in logits[first - 1 : -1]:
            chances = row.softmax(0).sort(descending=True).values[: top_k or None]
            chances = chances / chances.sum()
            found.append(float(-(chances * chances.log()).sum()))
    return np.array(found)


def test_entropy_over_the_two_most_likely_tokens_is_that_of_their_renormalised_chances():
    logits = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log()  # 0.6 and 0.2 become 0.75 and 0.25
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert next_token_entropy(logits, 2).item() == pytest.approx(expected)


def test_full_entropy_of_equal_chances_is_the_log_of_their_number():
    assert next_token_entropy(torch.zeros(1, 8), 0).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("top_k", [0, 4])
def test_entropies_of_targets_are_those_of_a_plain_forward(policy, top_k):
    windows = some_windows()
    found = all_entropies(policy, windows, top_k=top_k, batch_tokens=100)
    np.testing.assert_allclose(found, plain_entropies(policy, windows, top_k), atol=2e-5)


def test_a_proxy_reads_the_opening_before_each_window(policy):
    windows = Windows.of_documents([[5, 6], [7]], [[8, 9], [10, 11, 12]])
    opened = Windows(windows.ids, windows.starts, windows.firsts, windows.ends, windows.limits, opening=[1])
    written = Windows.of_documents([[1, 5, 6], [1, 7]], [[8, 9], [10, 11, 12]])
    np.testing.assert_allclose(all_entropies(policy, opened), plain_entropies(policy, written), atol=2e-5)
    assert entropy_key(opened, *KEYED) != entropy_key(windows, *KEYED)


def test_entropies_do_not_depend_on_how_windows_are_batched(policy):
    windows = some_windows()
    one, many = (all_entropies(policy, windows, batch_tokens=size) for size in (1, 10_000))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_a_batch_holds_no_more_tokens_than_asked_for(policy, monkeypatch):
    shapes = []
    batch = compute._batch
    monkeypatch.setattr(compute, "_batch", lambda *args: shapes.append(batch(*args).ids.shape) or batch(*args))
    all_entropies(policy, some_windows(), batch_tokens=64)
    assert {rows * width <= 64 for rows, width in shapes} == {True}
    assert max(rows for rows, _ in shapes) == 3


def test_only_the_logits_of_one_chunk_exist_at_a_time(policy, monkeypatch):
    sizes = []
    monkeypatch.setattr(compute, "LOGITS_PER_CHUNK", 8 * policy.vocabulary)
    monkeypatch.setattr(
        compute, "next_token_entropy", lambda logits, k: sizes.append(len(logits)) or next_token_entropy(logits, k)
    )
    all_entropies(policy, some_windows())
    assert max(sizes) == 8


def test_dropout_has_no_part_in_entropies():
    policy = sharp_policy(config={"attention_dropout": 0.5})
    first, again = (all_entropies(policy, some_windows()) for _ in range(2))
    np.testing.assert_array_equal(first, again)
