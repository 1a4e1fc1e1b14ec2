"""The entropy filter, on positions of texts and on sampled tokens."""

import string
import types

import numpy as np
import pytest
import torch
from conftest import TINY, quiet_trainer, tiny_data, tiny_spec
from entropy_windows import all_entropies, sharp_policy, sharp_spec, some_windows

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import EntropyFilter
from lit_rl.datamodules import PromptDataModule
from lit_rl.datamodules.positions import Positions
from lit_rl.entropy import cache as entropy_cache
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import PolicySpec
from lit_rl.objectives import Objective
from lit_rl.sampling import Sampler
from lit_rl.tasks.tokenizers import character_tokenizer
from lit_rl.text.token_bytes import token_bytes


@pytest.fixture(scope="module")
def policy():
    return sharp_policy()


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
    assert callback.metrics["entropy_filter/kept"] == pytest.approx(0.25, abs=0.01)


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
    proxy = sharp_policy(config={"num_hidden_layers": 1})
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


def test_options_that_say_nothing_clear_are_refused():
    for options, message in [
        ({"threshold": 1.0, "quantile": 0.5}, "write one of them"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"top_k": 1}, "top_k is 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"target": "tokens"}, "write one of positions, completion"),
        ({"target": "completion"}, "needs a threshold or a quantile"),
        ({"target": "completion", "quantile": 0.5, "proxy": tiny_spec()}, "and no proxy"),
    ]:
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
    settings = {"group_size": 4, "objective": objective or Objective(), "kl_coef": 0.1}
    module = GRPO(sharp_spec(), sampler=sampler, evaluation=evaluation, **settings)
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


def test_two_filters_have_two_states():
    filters = [EntropyFilter(threshold=0.5), EntropyFilter(target="completion", quantile=0.8)]
    assert len({each.state_key for each in filters}) == 2
