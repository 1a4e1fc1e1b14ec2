"""KV cache: preallocated layers hold what transformers' own layers hold, whatever their rows go through."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from lit_rl.kernels.kv_cache import PreallocatedLayer, join_caches, preallocate_cache, repeat_cache, select_cache, trim_cache


def states(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (n, 2, S, 3)."""
    return torch.randn(rows, 2, width, 3), torch.randn(rows, 2, width, 3)


def cache_of(keys: torch.Tensor, values: torch.Tensor, window: int = 0) -> DynamicCache:
    cache = DynamicCache()
    if window:
        cache.layers = [DynamicSlidingWindowLayer(window)]
    cache.update(keys, values, 0)
    return cache


def test_preallocated_positions_are_those_of_a_growing_layer():
    first = states(4, 5)
    plain, preallocated = cache_of(*first), cache_of(*first)
    preallocate_cache(preallocated, 2)
    assert type(preallocated.layers[0]) is PreallocatedLayer
    for _ in range(5):  # past what was allocated, twice
        new = states(4, 1)
        found, expected = preallocated.update(*new, 0), plain.update(*new, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert preallocated.get_seq_length() == plain.get_seq_length() == 10


def test_selected_trimmed_and_joined_rows_are_those_of_a_growing_layer():
    first, second, new = states(4, 5), states(2, 3), states(5, 1)
    caches = []
    for preallocate in (False, True):
        cache, other = cache_of(*first), cache_of(*second)
        if preallocate:
            preallocate_cache(cache, 2)
            preallocate_cache(other, 2)
        select_cache(cache, torch.tensor([0, 3, 2]))
        trim_cache(cache, 1)
        join_caches(cache, other)
        caches.append(cache.update(*new, 0))
    keys = torch.zeros(5, 2, 5, 3)
    keys[:3, :, :4], keys[3:, :, 1:4], keys[:, :, 4:] = first[0][[0, 3, 2], :, 1:], second[0], new[0]
    assert torch.equal(caches[0][0], keys)
    assert all(torch.equal(a, b) for a, b in zip(*caches, strict=True))


def test_the_copies_of_a_row_stand_beside_each_other():
    keys, values = states(2, 3)
    cache = cache_of(keys, values)
    repeat_cache(cache, 2)
    assert torch.equal(cache.layers[0].keys, keys[[0, 0, 1, 1]])
    assert torch.equal(cache.layers[0].values, values[[0, 0, 1, 1]])


def test_a_window_keeps_its_last_columns_when_padding_is_trimmed():
    keys, values = states(2, 6)
    cache = cache_of(keys, values, window=4)  # holds 3 columns
    trim_cache(cache, 2)
    assert torch.equal(cache.layers[0].keys, keys[:, :, 3:])
    assert cache.get_seq_length() == 4
    trim_cache(cache, 2)
    assert torch.equal(cache.layers[0].keys, keys[:, :, 4:])
    assert cache.get_seq_length() == 2
