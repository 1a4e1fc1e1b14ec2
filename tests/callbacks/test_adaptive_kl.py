"""The KL coefficient follows the KL: its arithmetic on given KLs, and its place in real runs."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_runs import refusal, tiny_config, write_yaml
from torch.utils.data import DataLoader

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import AdaptiveKL
from lit_rl.evaluation import Evaluation
from lit_rl.objectives import Objective
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler

# --- arithmetic --------------------------------------------------------------------------------------------------


class Drifting(pl.LightningModule):
    """A module whose KL is known beforehand: one number for each optimizer step, logged with its last micro-batch."""

    def __init__(self, kls, kl_coef):
        super().__init__()
        self.kls, self.kl_coef = kls, kl_coef
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log("kl", self.kls[self.trainer.global_step])
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Coefficients(pl.Callback):
    """Writes down the coefficient behind every micro-batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *rest):
        self.seen.append(module.kl_coef)


def coefficients(folder, kls, controller, accumulate=1, kl_coef=1.0):
    """The coefficient behind every micro-batch of a run in which the optimizer steps see these KLs."""
    seen = Coefficients()
    trainer = quiet_trainer(folder, max_steps=len(kls), callbacks=[controller, seen], accumulate_grad_batches=accumulate)
    trainer.fit(Drifting(kls, kl_coef), DataLoader(torch.zeros(len(kls) * accumulate)))
    return seen.seen


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        # Target 0.1, gain 0.1: 1 + 0.1 clip(kl / 0.1 - 1, -0.2, 0.2)
        (0.2, 1.02),
        (0.13, 1.02),
        (0.115, 1.015),
        (0.11, 1.01),
        (0.1, 1.0),
        (0.095, 0.995),
        (0.09, 0.99),
        (0.07, 0.98),
        (0.0, 0.98),
        (-0.3, 0.98),
    ],
)
def test_the_coefficient_follows_the_kl_by_at_most_2_percent_a_step(tmp_path, kl, factor):
    assert coefficients(tmp_path, [kl], AdaptiveKL(target=0.1), kl_coef=0.5) == pytest.approx([0.5 * factor])


def test_the_gain_is_how_strongly_the_coefficient_reacts(tmp_path):
    # 1 + 2 * 0.2, 1 - 2 * 0.2 and 1 + 2 * 0.1
    for kl, factor in ((9.0, 1.4), (0.0, 0.6), (0.55, 1.2)):
        assert coefficients(tmp_path, [kl], AdaptiveKL(target=0.5, gain=2.0)) == pytest.approx([factor])


def test_changes_of_the_coefficient_multiply(tmp_path):
    # 1.02, 1.02 * 1.02, 1.0404 * 0.98, 1.019592 * 1.01
    seen = coefficients(tmp_path, [0.3, 0.3, 0.0, 0.11], AdaptiveKL(target=0.1))
    assert seen == pytest.approx([1.02, 1.0404, 1.019592, 1.02978792])


def test_the_coefficient_changes_once_an_optimizer_step_under_accumulation(tmp_path):
    # The first micro-batch of a step changes nothing, the second ends it: 1.02, then 1.02 * 0.98
    seen = coefficients(tmp_path, [0.3, 0.0], AdaptiveKL(target=0.1), accumulate=2)
    assert seen == pytest.approx([1.0, 1.02, 1.02, 0.9996])


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"target": 0.0}, {"target": -0.1}, {"gain": 0.0}, {"gain": -0.1}, {"gain": 5.0}])
def test_targets_and_gains_out_of_range_are_refused(options):
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


def test_a_run_without_the_controller_keeps_its_coefficient(tmp_path):
    module = grpo()
    fit(tmp_path, module)
    assert module.kl_coef == 0.5


@pytest.mark.parametrize("objective", [Objective(), Objective(kl_estimator="k1", kl_in="reward")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_coefficient_of_a_run_follows_its_own_kl(tmp_path, accumulate, objective):
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
