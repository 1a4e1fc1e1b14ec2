"""Entropies on disk: computed once, by a name that says what they belong to, and continued after a crash."""

import math

import numpy as np
import pytest
import torch
from entropy_windows import all_entropies, sharp_policy, sharp_spec, some_windows

from lit_rl.entropy import compute
from lit_rl.entropy.cache import entropy_key, fill_entropies, is_complete, read_entropies, wait_for_entropies
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.tasks.tokenizers import character_tokenizer


@pytest.fixture(scope="module")
def policy():
    return sharp_policy()


def fill(file, windows, proxy, **options):
    fill_entropies(file, windows, proxy, **{"top_k": 16, "batch_tokens": 60, **options})
    return read_entropies(file)


def test_the_file_holds_the_entropies_of_all_targets_and_lies_alone(policy, tmp_path):
    windows, file = some_windows(), tmp_path / "folder" / "e.npy"
    expected = all_entropies(policy, windows, top_k=16, batch_tokens=60)
    np.testing.assert_array_equal(fill(file, windows, lambda: policy), expected)
    assert list(file.parent.iterdir()) == [file]


def test_a_killed_run_goes_on_where_it_stopped(policy, tmp_path, monkeypatch):
    windows, file = some_windows(), tmp_path / "e.npy"
    whole = fill(tmp_path / "whole.npy", windows, lambda: policy)
    batch, seen = compute._batch, []

    def watched(windows, first, stop, limit=4):
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append((first, stop))
        return batch(windows, first, stop)

    monkeypatch.setattr(compute, "_batch", watched)
    with pytest.raises(KeyboardInterrupt):
        fill(file, windows, lambda: policy)
    assert not is_complete(file)
    reached = seen[-1][1]
    monkeypatch.setattr(compute, "_batch", lambda *args: watched(*args, limit=10**6))
    np.testing.assert_allclose(fill(file, windows, lambda: policy), whole, atol=1e-6)
    assert seen[4][0] == reached


def test_a_second_run_builds_no_model(policy, tmp_path):
    windows, file = some_windows(), tmp_path / "e.npy"
    first = np.array(fill(file, windows, lambda: policy))
    np.testing.assert_array_equal(fill(file, windows, None), first)


def test_a_model_whose_entropy_is_nan_is_an_error(tmp_path):
    broken = sharp_policy()
    broken.causal_lm.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN before window 3"):
        fill(tmp_path / "e.npy", some_windows(), lambda: broken)


# --- the name of the file --------------------------------------------------------------------------------------------


def key(windows=None, spec=None, seed=0, tokenizer=None, top_k=16):
    spec = spec or sharp_spec()
    return entropy_key(windows or some_windows(), spec, seed, tokenizer or load_tokenizer(spec), top_k)


def test_the_key_changes_with_each_thing_that_entropies_depend_on_and_with_nothing_else():
    changes = {
        "tokens": {"windows": some_windows(seed=1)},
        "size of windows": {"windows": some_windows(size=21)},
        "model": {"spec": sharp_spec(config={"num_hidden_layers": 1})},
        "seed": {"seed": 1},
        "tokenizer": {"tokenizer": character_tokenizer("ab")},
        "top_k": {"top_k": 0},
    }
    assert key() == key()
    for name, change in changes.items():
        assert key(**change) != key(), name


def test_the_key_changes_with_the_weights_in_a_folder(policy, tmp_path):
    policy.causal_lm.save_pretrained(tmp_path)
    load_tokenizer(policy.spec).save_pretrained(tmp_path)
    spec = PolicySpec(pretrained=str(tmp_path))
    before = key(spec=spec)
    policy.causal_lm.save_pretrained(tmp_path)
    assert key(spec=spec) == before
    with torch.no_grad():
        other = Policy(spec, load_tokenizer(spec)).causal_lm
        other.get_output_embeddings().weight[0, 0] += 1
    other.save_pretrained(tmp_path)
    assert key(spec=spec) != before


def test_another_process_waits_for_a_whole_file_and_not_for_a_dead_writer(tmp_path):
    windows = some_windows()
    file = tmp_path / "entropies.npy"
    with pytest.raises(ValueError, match="no new entropies for 0 minutes"):
        wait_for_entropies(file, patience=0.0, pause=0.0)
    fill_entropies(file, windows, sharp_policy, 0, 1000)
    wait_for_entropies(file, patience=0.0, pause=0.0)
