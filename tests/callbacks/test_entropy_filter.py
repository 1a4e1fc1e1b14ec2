"""Entropies of positions by a proxy model, kept on disk, and what a filter makes of them."""

import math
import string
import types

import numpy as np
import pytest
import torch
from conftest import TINY, quiet_trainer, tiny_data, tiny_spec

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import EntropyFilter
from lit_rl.datamodules import PromptDataModule
from lit_rl.datamodules.positions import Positions
from lit_rl.entropy import cache as entropy_cache
from lit_rl.entropy import compute as token_entropy
from lit_rl.entropy.cache import entropy_key, fill_entropies, is_complete, read_entropies
from lit_rl.entropy.compute import next_token_entropy, window_entropies
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.objectives import Objective
from lit_rl.randomness import seeded
from lit_rl.sampling import Sampler
from lit_rl.tasks.tokenizers import character_tokenizer
from lit_rl.text.token_bytes import token_bytes
from lit_rl.text.windows import slide

SHARP = {"initializer_range": 0.3}
"""Weights large enough that entropies differ."""


def sharp_spec(**options):
    return tiny_spec(config={**SHARP, **options.pop("config", {})}, **options)


@pytest.fixture(scope="module")
def policy():
    spec = sharp_spec()
    with seeded(0):
        return Policy(spec, load_tokenizer(spec))


def some_windows(count=400, size=20, seed=0, vocabulary=50):
    """Windows of random tokens of three documents."""
    ids = np.random.default_rng(seed).integers(3, vocabulary, count)
    return slide(ids, np.array([count // 3, count // 2, count]), size, 5, size - 5)


def all_entropies(policy, windows, **options):
    return np.concatenate([values for _, values in window_entropies(policy, windows, **options)])


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


# --- entropies -------------------------------------------------------------------------------------------------------


def test_entropy_over_the_two_most_likely_tokens_is_that_of_their_renormalised_chances():
    logits = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log()  # 0.6 and 0.2 become 0.75 and 0.25
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert next_token_entropy(logits, 2).item() == pytest.approx(expected)


def test_full_entropy_of_equal_chances_is_the_log_of_their_number():
    assert next_token_entropy(torch.zeros(1, 8), 0).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("top_k", [0, 4, 16])
def test_entropies_of_targets_are_those_of_a_plain_forward(policy, top_k):
    windows = some_windows()
    found = all_entropies(policy, windows, top_k=top_k, batch_tokens=100)
    np.testing.assert_allclose(found, plain_entropies(policy, windows, top_k), atol=2e-5)


def test_entropies_do_not_depend_on_how_windows_are_batched(policy):
    windows = some_windows()
    one, many = (all_entropies(policy, windows, batch_tokens=size) for size in (1, 10_000))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_a_batch_holds_no_more_tokens_than_asked_for(policy, monkeypatch):
    shapes = []
    batch = token_entropy._batch
    monkeypatch.setattr(token_entropy, "_batch", lambda *args: shapes.append(batch(*args).ids.shape) or batch(*args))
    all_entropies(policy, some_windows(), batch_tokens=64)
    assert {rows * width <= 64 for rows, width in shapes} == {True}
    assert max(rows for rows, _ in shapes) == 3


def test_the_logits_of_a_chunk_are_all_that_exist_at_a_time(policy, monkeypatch):
    sizes = []
    monkeypatch.setattr(token_entropy, "LOGITS_PER_CHUNK", 8 * policy.vocabulary)
    monkeypatch.setattr(
        token_entropy, "next_token_entropy", lambda logits, k: sizes.append(len(logits)) or next_token_entropy(logits, k)
    )
    all_entropies(policy, some_windows())
    assert max(sizes) == 8


def test_dropout_has_no_part_in_entropies():
    spec = sharp_spec(config={"attention_dropout": 0.5})
    with seeded(0):
        policy = Policy(spec, load_tokenizer(spec))
    first, again = (all_entropies(policy, some_windows()) for _ in range(2))
    np.testing.assert_array_equal(first, again)


# --- on disk ---------------------------------------------------------------------------------------------------------


def fill(file, windows, proxy, **options):
    fill_entropies(file, windows, proxy, **{"top_k": 16, "batch_tokens": 60, **options})
    return read_entropies(file)


def test_the_file_holds_the_entropies_of_all_targets(policy, tmp_path):
    windows = some_windows()
    np.testing.assert_array_equal(
        fill(tmp_path / "e.npy", windows, lambda: policy), all_entropies(policy, windows, top_k=16, batch_tokens=60)
    )


def test_a_killed_run_goes_on_where_it_stopped(policy, tmp_path, monkeypatch):
    windows, file = some_windows(), tmp_path / "e.npy"
    whole = fill(tmp_path / "whole.npy", windows, lambda: policy)
    compute, seen = token_entropy._batch, []

    def watched(windows, first, stop, limit=4):
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append((first, stop))
        return compute(windows, first, stop)

    monkeypatch.setattr(token_entropy, "_batch", watched)
    with pytest.raises(KeyboardInterrupt):
        fill(file, windows, lambda: policy)
    assert not is_complete(file)
    reached = seen[-1][1]
    monkeypatch.setattr(token_entropy, "_batch", lambda *args: watched(*args, limit=10**6))
    np.testing.assert_allclose(fill(file, windows, lambda: policy), whole, atol=1e-6)
    assert seen[4][0] == reached


def test_a_second_run_builds_no_model(policy, tmp_path):
    windows, file = some_windows(), tmp_path / "e.npy"
    first = np.array(fill(file, windows, lambda: policy))
    np.testing.assert_array_equal(fill(file, windows, None), first)


def test_a_model_whose_entropy_is_nan_is_an_error(tmp_path):
    spec = sharp_spec()
    broken = Policy(spec, load_tokenizer(spec))
    broken.causal_lm.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN before window 3"):
        fill(tmp_path / "e.npy", some_windows(), lambda: broken)


def key(windows=None, spec=None, seed=0, tokenizer=None, top_k=16):
    spec = spec or sharp_spec()
    return entropy_key(windows or some_windows(), spec, seed, tokenizer or load_tokenizer(spec), top_k)


def test_the_key_is_the_same_for_the_same_things():
    assert key() == key()


@pytest.mark.parametrize(
    "other",
    [
        {"windows": some_windows(seed=1)},
        {"windows": some_windows(size=21)},
        {"spec": sharp_spec(config={"num_hidden_layers": 1})},
        {"seed": 1},
        {"tokenizer": character_tokenizer("ab")},
        {"top_k": 0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_key_changes_with(other):
    assert key(**other) != key()


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


# --- the callback, on positions --------------------------------------------------------------------------------------


class Text(PromptDataModule):
    """Positions of random tokens."""

    def setup(self, stage):
        pieces = token_bytes(self.tokenizer)
        self.train_set = Positions(some_windows(), pieces, 2)
        self.val_set, self.test_set = (Positions(some_windows(100, seed=seed), pieces, 2) for seed in (1, 2))
        for positions in (self.val_set, self.test_set):
            positions.thin_out(4)


def filtered(tmp_path, stage="fit", **options):
    """The data after the callback's setup, and the callback."""
    callback = EntropyFilter(cache_folder=str(tmp_path / "cache"), **options)
    module, data = SFT(sharp_spec(), evaluation=Evaluation(max_new_tokens=0)), Text(batch_size=4)
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[callback], limit_val_batches=1)
    getattr(trainer, stage)(module, data)
    return data, callback


def expected_entropies(policy, top_k=16):
    return all_entropies(policy, some_windows(), top_k=top_k)


def test_training_keeps_the_positions_above_the_threshold(policy, tmp_path):
    values = expected_entropies(policy)
    floor = float(np.median(values))
    data, _ = filtered(tmp_path, threshold=floor)
    np.testing.assert_array_equal(data.train_set.places, np.flatnonzero(values > floor))


def test_a_quantile_leaves_out_that_share(policy, tmp_path):
    data, callback = filtered(tmp_path, quantile=0.75)
    total = data.train_set.windows.num_targets
    assert len(data.train_set) == pytest.approx(total / 4, abs=1)
    assert expected_entropies(policy)[data.train_set.places].min() > np.quantile(expected_entropies(policy), 0.75)
    assert callback._metrics["entropy_filter/kept"] == pytest.approx(0.25, abs=0.01)


def test_without_threshold_all_positions_stay_and_know_their_entropy(policy, tmp_path):
    data, _ = filtered(tmp_path)
    assert len(data.train_set) == data.train_set.windows.num_targets
    found = [data.train_set[index].entropy for index in range(len(data.train_set))]
    np.testing.assert_allclose(found, expected_entropies(policy), atol=1e-5)


def test_evaluation_sets_are_annotated_and_stay_whole(policy, tmp_path):
    data, _ = filtered(tmp_path, quantile=0.5)
    assert len(data.val_set) == 4
    expected = all_entropies(policy, data.val_set.windows, top_k=16)[data.val_set.places]
    np.testing.assert_allclose([data.val_set[index].entropy for index in range(4)], expected, atol=1e-5)


def test_windows_without_a_position_are_not_asked_about(tmp_path):
    data, _ = filtered(tmp_path)
    assert np.isnan(data.val_set.entropies).any()
    assert not np.isnan(data.train_set.entropies).any()


@pytest.mark.parametrize(("stage", "annotated"), [("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"})])
def test_only_the_sets_of_the_stage_are_asked_about(tmp_path, stage, annotated):
    data, _ = filtered(tmp_path, stage)
    assert {name for name in ("train", "val", "test") if getattr(data, f"{name}_set").entropies is not None} == annotated


def test_a_proxy_is_asked_instead_of_the_policy(tmp_path):
    spec = sharp_spec(config={"num_hidden_layers": 1})
    data, _ = filtered(tmp_path, proxy=spec)
    with seeded(0):
        proxy = Policy(spec, load_tokenizer(spec))
    np.testing.assert_allclose(data.train_set.entropies, expected_entropies(proxy), atol=1e-5)


def test_a_second_run_reads_the_cache(tmp_path, monkeypatch):
    first, _ = filtered(tmp_path, quantile=0.5)
    monkeypatch.setattr(entropy_cache, "window_entropies", None)
    again, _ = filtered(tmp_path, quantile=0.5)
    np.testing.assert_array_equal(again.train_set.places, first.train_set.places)


def test_the_filter_leaves_the_random_state_as_it_was(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    filter_, module, data = EntropyFilter(cache_folder=str(tmp_path)), SFT(sharp_spec()), Text(batch_size=4)
    trainer = quiet_trainer(tmp_path)
    trainer.datamodule = data
    data.trainer = trainer
    trainer.strategy.connect(module)
    data.setup("fit")
    filter_.setup(trainer, module, "fit")
    assert torch.equal(torch.rand(1), expected)


def test_a_threshold_above_ln_k_is_an_error_that_prints_the_distribution(tmp_path):
    with pytest.raises(ValueError, match=r"above ln 4 = 1\.386 nats.*Entropies in nats: 0% \d\.\d+, 10% ") as error:
        filtered(tmp_path, threshold=1.5, top_k=4)
    assert "\n" not in str(error.value)


def test_a_threshold_that_leaves_nothing_is_an_error_that_prints_the_distribution(policy, tmp_path):
    most = float(expected_entropies(policy).max())
    with pytest.raises(ValueError, match=rf"leaves no position above .*100% {most:.2f}"):
        filtered(tmp_path, threshold=most + 1e-4)


def test_a_proxy_with_another_tokenizer_is_refused_in_one_line(tmp_path):
    character_tokenizer(string.digits).save_pretrained(tmp_path / "digits")
    proxy = PolicySpec(config={"model_type": "llama", **TINY}, tokenizer=str(tmp_path / "digits"))
    with pytest.raises(ValueError, match=r"another than the policy's \(3 of \d+ tokens are the same\)") as error:
        filtered(tmp_path, proxy=proxy)
    assert "\n" not in str(error.value)


def test_whole_samples_have_no_positions_to_filter(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[EntropyFilter(cache_folder=str(tmp_path))], max_steps=1)
    with pytest.raises(ValueError, match=r"data\.train_set holds whole samples"):
        trainer.fit(SFT(tiny_spec()), tiny_data())


def test_a_resumed_run_must_have_kept_as_many_positions(tmp_path):
    _, half = filtered(tmp_path, quantile=0.5)
    _, quarter = filtered(tmp_path, quantile=0.75)
    half.load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="resume with the same data and options"):
        half.load_state_dict(quarter.state_dict())


def test_processes_after_the_first_read_what_it_wrote(tmp_path, monkeypatch):
    first, _ = filtered(tmp_path, quantile=0.5)
    monkeypatch.setattr("lit_rl.callbacks.entropy_filter.fill_entropies", None)
    module, data = SFT(sharp_spec()), Text(batch_size=4)
    waits = types.SimpleNamespace(barrier=lambda: None, root_device=torch.device("cpu"))
    other = types.SimpleNamespace(is_global_zero=False, strategy=waits, datamodule=data, lightning_module=module)
    data.trainer = other
    data.setup("fit")
    EntropyFilter(quantile=0.5, cache_folder=str(tmp_path / "cache")).setup(other, module, "fit")
    np.testing.assert_array_equal(data.train_set.places, first.train_set.places)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0, "quantile": 0.5}, "write one of them"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"top_k": 1}, "top_k is 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"target": "tokens"}, "write one of positions, completion"),
        ({"target": "completion"}, "needs a threshold or a quantile"),
        ({"target": "completion", "quantile": 0.5, "proxy": tiny_spec()}, "and no proxy"),
    ],
)
def test_options_that_say_nothing_clear_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EntropyFilter(**options)


# --- the callback, on sampled tokens ---------------------------------------------------------------------------------


class Keep(RolloutCallback):
    """The first rollout."""

    rollouts = None

    def on_rollout_end(self, trainer, module, rollouts):
        self.rollouts = self.rollouts or rollouts
        return rollouts


def sampled(tmp_path, objective=None, **options):
    """The first rollout behind a filter, and the trainer."""
    keep = Keep()
    callbacks = [EntropyFilter(target="completion", **options), keep]
    sampler, evaluation = Sampler(max_new_tokens=6), Evaluation(max_new_tokens=4)
    module = GRPO(sharp_spec(), sampler, group_size=4, objective=objective or Objective(), evaluation=evaluation, kl_coef=0.1)
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=1)
    trainer.fit(module, tiny_data())
    return keep.rollouts, trainer


def test_sampled_tokens_above_the_threshold_carry_the_gradient(tmp_path):
    rollouts, trainer = sampled(tmp_path, threshold=2.0)
    expected = rollouts.mask & (rollouts.entropies > 2.0)
    assert torch.equal(rollouts.gradient_mask, expected)
    share = float(expected.sum() / rollouts.mask.sum())
    assert 0 < share < 1
    assert float(trainer.callback_metrics["entropy_filter/kept"]) == pytest.approx(share)


def test_a_quantile_of_sampled_tokens_is_taken_over_the_rollout(tmp_path):
    rollouts, _ = sampled(tmp_path, quantile=0.8)
    assert float(rollouts.gradient_mask.sum() / rollouts.mask.sum()) == pytest.approx(0.2, abs=0.02)


def test_a_filter_of_completions_and_top_entropy_are_refused_together(tmp_path):
    with pytest.raises(ValueError, match="both choose tokens"):
        sampled(tmp_path, Objective(top_entropy=0.5), quantile=0.8)


def test_a_filter_of_completions_needs_an_algorithm_that_samples(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[EntropyFilter(target="completion", quantile=0.5)], max_steps=1)
    with pytest.raises(ValueError, match="an algorithm that samples, not SFT"):
        trainer.fit(SFT(tiny_spec()), tiny_data())


def test_a_threshold_above_ln_of_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"above ln V = 3\.\d+"):
        sampled(tmp_path, threshold=5.0)
