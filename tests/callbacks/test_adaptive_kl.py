"""The KL coefficient follows the KL: its arithmetic on given KLs, and its place in real runs."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import AdaptiveKL
from lit_rl.evaluation import Evaluation
from lit_rl.objectives import Objective
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler

# --- arithmetic --------------------------------------------------------------------------------------------------


def test_the_coefficient_follows_the_kl_by_at_most_2_percent_a_step():
    # Target 0.1, gain 0.1: 1 + 0.1 clip(kl / 0.1 - 1, -0.2, 0.2)
    factors = {0.2: 1.02, 0.13: 1.02, 0.115: 1.015, 0.11: 1.01, 0.1: 1.0, 0.095: 0.995, 0.09: 0.99, 0.07: 0.98, -0.3: 0.98}
    for kl, factor in factors.items():
        assert AdaptiveKL(target=0.1).adapted(0.5, kl) == pytest.approx(0.5 * factor), kl


def test_the_gain_is_the_strength_of_the_reaction():
    # 1 + 2 * 0.2, 1 - 2 * 0.2 and 1 + 2 * 0.1
    for kl, factor in ((9.0, 1.4), (0.0, 0.6), (0.55, 1.2)):
        assert AdaptiveKL(target=0.5, gain=2.0).adapted(1.0, kl) == pytest.approx(factor), kl


# --- what is refused ---------------------------------------------------------------------------------------------


def test_targets_and_gains_out_of_range_are_refused():
    for options in ({"target": 0.0}, {"target": -0.1}, {"gain": 0.0}, {"gain": -0.1}, {"gain": 5.0}):
        with pytest.raises(ValueError, match=r"^AdaptiveKL: target is .* and gain .*; write a target above 0 and a gain "):
            AdaptiveKL(**options)


class Odd(Reward):
    """1 where the first token is odd: about half of what an untrained policy says."""

    def score(self, rollouts):
        return (rollouts.completion_ids[:, 0] % 2).float()


def grpo(**options):
    settings = {"sampler": Sampler(max_new_tokens=4), "group_size": 4, "evaluation": Evaluation(max_new_tokens=4)}
    return GRPO(tiny_spec(), **{"reward": Odd(), "kl_coef": 0.5, "optimizer": fast, **settings, **options})


def fast(params):
    return torch.optim.SGD(params, lr=1.0)


def fit(folder, module, *callbacks, ckpt_path=None, **options):
    trainer = quiet_trainer(folder, callbacks=list(callbacks), **{"max_steps": 2, **options})
    trainer.fit(module, tiny_data(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("module", [lambda: grpo(kl_coef=0.0), lambda: SFT(tiny_spec())])
def test_a_run_without_a_kl_term_is_refused(tmp_path, module):
    with pytest.raises(ValueError, match=r"AdaptiveKL needs a KL term to control; write model\.kl_coef above 0"):
        fit(tmp_path, module(), AdaptiveKL())


def test_a_run_without_a_kl_term_gets_one_line_on_the_command_line(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "run", algorithm="GRPO"))
    message = refusal("fit", "--config", config, "--trainer.callbacks+=AdaptiveKL")
    assert message.startswith("lit-rl: AdaptiveKL needs a KL term to control; write model.kl_coef above 0")


# --- in real runs ------------------------------------------------------------------------------------------------


def logged(folder):
    """kl and kl_coef of every optimizer step."""
    with (folder / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kl"]]
    return [float(row["kl"]) for row in rows], [float(row["kl_coef"]) for row in rows]


def logger(folder):
    return CSVLogger(folder, name="", version=0)


@pytest.mark.parametrize(("objective", "accumulate"), [(Objective(), 2), (Objective(kl_estimator="k1", kl_in="reward"), 1)])
def test_the_coefficient_of_a_run_follows_its_own_kl(tmp_path, objective, accumulate):
    # At the first step the policy is the reference, its KL 0; later on it is far above this target.
    module = grpo(objective=objective)
    fit(tmp_path, module, AdaptiveKL(target=1e-9), logger=logger(tmp_path), max_steps=3, accumulate_grad_batches=accumulate)
    kls, coefs = logged(tmp_path)
    assert kls[0] == pytest.approx(0, abs=1e-12)
    assert min(kls[1:]) > 1e-8
    # 0.5 * 0.98, 0.49 * 1.02, 0.4998 * 1.02
    assert coefs == pytest.approx([0.49, 0.4998, 0.509796])
    assert module.kl_coef == pytest.approx(0.509796)


def test_the_coefficient_weighs_the_next_steps_kl(tmp_path):
    # One rollout, two passes over it: in both runs the second one sees the same policy, under another coefficient.
    losses = []
    for controller in ([], [AdaptiveKL(target=10.0, gain=4.9)]):
        # 1 - 4.9 * 0.2 = 0.02 after the first step
        folder = tmp_path / str(len(losses))
        module = grpo(epochs=2, kl_coef=50.0)
        fit(folder, module, *controller, logger=logger(folder))
        with (folder / "version_0" / "metrics.csv").open(newline="") as file:
            losses.append([(float(row["loss"]), float(row["kl"])) for row in csv.DictReader(file) if row["kl"]])
    (first, second), (controlled_first, controlled_second) = losses
    assert controlled_first == first
    assert controlled_second[1] == second[1] > 1e-6
    # kl_coef falls from 50 to 1
    assert second[0] - controlled_second[0] == pytest.approx(49 * second[1], rel=1e-4)


def test_the_coefficient_is_in_the_checkpoint_and_goes_on_from_there(tmp_path):
    whole = grpo()
    fit(tmp_path, whole, AdaptiveKL(target=1e-9), max_steps=4)
    saver = ModelCheckpoint(tmp_path, filename="two", every_n_train_steps=2)
    fit(tmp_path, grpo(), AdaptiveKL(target=1e-9), saver, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["AdaptiveKL"] == {"coef": pytest.approx(0.4998)}  # 0.5 * 0.98 * 1.02
    resumed = grpo()
    fit(tmp_path, resumed, AdaptiveKL(target=1e-9), max_steps=4, ckpt_path=tmp_path / "two.ckpt")
    # 0.4998 * 1.02 * 1.02
    assert resumed.kl_coef == whole.kl_coef == pytest.approx(0.51999192)


def test_a_controller_that_joins_on_resuming_waits_for_the_end_of_a_step(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="two", every_n_train_steps=2)
    fit(tmp_path, grpo(), saver, enable_checkpointing=True, accumulate_grad_batches=2)
    resumed = grpo()
    options = {"max_steps": 4, "accumulate_grad_batches": 2, "ckpt_path": tmp_path / "two.ckpt"}
    fit(tmp_path, resumed, AdaptiveKL(target=1e-9), **options)
    # 0.5 * 1.02 * 1.02
    assert resumed.kl_coef == pytest.approx(0.5202)


def test_a_checkpoint_from_before_the_first_step_keeps_the_configs_coefficient():
    controller = AdaptiveKL()
    controller.load_state_dict(AdaptiveKL().state_dict())
    module = grpo(kl_coef=0.3)
    controller.on_fit_start(pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), module)
    assert module.kl_coef == 0.3


def test_a_coefficient_that_is_restored_after_the_fit_has_started_is_taken_up():
    # As strategies that shard restore callbacks.
    controller, module = AdaptiveKL(), grpo(kl_coef=0.3)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    controller.on_fit_start(trainer, module)
    controller.load_state_dict({"coef": 0.7})
    controller.on_train_start(trainer, module)
    assert module.kl_coef == 0.7
