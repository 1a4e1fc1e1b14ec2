"""Windows of long texts: which tokens they hold, and which of those are to be predicted."""

from itertools import chain

import numpy as np
import pytest
import torch
from conftest import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.entropy.compute import window_entropies
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.text.windows import Windows, slide

CASES = st.tuples(
    st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(2, 12), st.integers(0, 11), st.integers(1, 15)
).filter(lambda case: case[2] < case[1])


def slow_windows(lengths, size, context, stride):
    """(start, targets, end of document) of each window, token by token."""
    found, begin = [], 0
    for length in lengths:
        taken, start = set(), begin
        while start == begin or start + context < begin + length:
            least = begin + 1 if start == begin else start + max(1, context)
            targets = [t for t in range(start, min(start + size, begin + length)) if t >= least and t not in taken]
            taken.update(targets)
            if targets:
                found.append((start, targets, begin + length))
            start += stride
        begin += length
    return found


def windows_of(lengths, size, context, stride):
    return slide(np.arange(sum(lengths)), np.cumsum(lengths), size, context, stride)


def targets_of(windows):
    return [list(range(first, end)) for first, end in zip(windows.firsts.tolist(), windows.ends.tolist(), strict=True)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(CASES)
def test_windows_are_those_of_a_slow_reference(case):
    windows = windows_of(*case)
    assert list(zip(windows.starts.tolist(), targets_of(windows), windows.limits.tolist(), strict=True)) == slow_windows(*case)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_no_token_is_a_target_twice(case):
    targets = list(chain(*targets_of(windows_of(*case))))
    assert len(set(targets)) == len(targets)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_no_window_reaches_across_two_documents(case):
    windows, ends = windows_of(*case), np.cumsum(case[0])
    for start, end, limit in zip(windows.starts, windows.ends, windows.limits, strict=True):
        assert np.searchsorted(ends, start, side="right") == np.searchsorted(ends, end - 1, side="right")
        assert limit in ends


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_a_window_that_does_not_begin_a_document_has_its_context(case):
    lengths, _, context, _ = case
    windows, begins = windows_of(*case), np.cumsum([0, *lengths])
    for start, first in zip(windows.starts, windows.firsts, strict=True):
        assert first - start >= (1 if start in begins else max(1, context))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_with_context_and_the_default_stride_every_token_but_a_documents_first_is_a_target(case):
    lengths, size, context, _ = case
    context = max(1, min(context, size - 1))
    targets = list(chain(*targets_of(windows_of(lengths, size, context, size - context))))
    begins = {int(begin) for begin in np.cumsum([0, *lengths])}
    assert sorted(targets) == [token for token in range(sum(lengths)) if token not in begins]


def test_a_target_is_found_again_by_its_number():
    windows = slide(np.arange(100, 110), np.array([10]), 6, 2, 4)
    assert [windows.locate(number) for number in range(9)] == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)] + [
        (1, place) for place in (6, 7, 8, 9)
    ]
    assert windows.tokens(1) == [104, 105, 106, 107, 108, 109]


def test_no_documents_are_no_windows():
    assert (len(Windows.of_documents([], [])), Windows.of_documents([], []).num_targets) == (0, 0)


# --- what a model makes of them --------------------------------------------------------------------------------------

REACH = 2 * (4 - 1) + 1
"""Tokens that the last state of two layers with a sliding window of four depends on."""


@pytest.fixture(scope="module")
def short_sighted():
    """A model that sees no further than `REACH` tokens."""
    spec = tiny_spec("mistral", config={"sliding_window": 4, "initializer_range": 0.5}, dtype="float64")
    torch.manual_seed(0)
    return Policy(spec, load_tokenizer(spec))


def entropies(policy, windows):
    return np.concatenate([values for _, values in window_entropies(policy, windows)])


def first_targets(policy, context):
    """Entropies of the first targets of windows of 24 tokens: in their windows, and in the unbroken text."""
    ids = np.random.default_rng(0).integers(0, policy.vocabulary, 100)
    windows = slide(ids, np.array([100]), 24, context, 24 - context)
    unbroken = entropies(policy, Windows.of_documents([ids[:1]], [ids[1:]]))  # of tokens 1 to 99
    return entropies(policy, windows)[windows.offsets[1:-1]], unbroken[windows.firsts[1:] - 1]


def test_the_first_target_has_the_entropy_of_the_unbroken_text_when_context_covers_what_the_model_sees(short_sighted):
    np.testing.assert_allclose(*first_targets(short_sighted, REACH), rtol=1e-5)  # float32 rotary angles


def test_the_first_target_has_another_entropy_than_in_the_unbroken_text_when_context_is_shorter(short_sighted):
    cut, unbroken = first_targets(short_sighted, REACH - 1)
    assert np.abs(cut - unbroken).max() > 1e-4


def test_with_the_whole_text_before_it_the_first_target_has_the_entropy_of_the_unbroken_text():
    spec = tiny_spec(config={"initializer_range": 0.5}, dtype="float64")
    policy = Policy(spec, load_tokenizer(spec))
    ids = np.random.default_rng(0).integers(0, policy.vocabulary, 60)
    zeros, starts = np.zeros(3, dtype=np.int64), np.array([1, 20, 40])
    windows = Windows(ids, zeros, starts, np.array([20, 40, 60]), zeros + 60)
    unbroken = entropies(policy, Windows.of_documents([ids[:1]], [ids[1:]]))
    np.testing.assert_allclose(entropies(policy, windows), unbroken, rtol=1e-6)
