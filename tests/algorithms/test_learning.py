"""Each algorithm learns: a curve that must rise, beside a control that must not. At most 60 s each on one thread."""

import functools

import pytest
import torch
from miniature import SMALL, adamw, fit

from lit_rl.algorithms import GRPO, PPO, RPT, SFT
from lit_rl.callbacks import HFExport, ShuffledRewards
from lit_rl.datamodules import Arithmetic, PositionSpec, ReasonedArithmetic
from lit_rl.evaluation import Evaluation, NextTokenEvaluation
from lit_rl.models import PolicySpec
from lit_rl.rewards import PrefixMatch
from lit_rl.sampling import Sampler
from lit_rl.training import Schedule

pytestmark = pytest.mark.learning


def grpo(start, folder, *callbacks):
    module = GRPO(
        PolicySpec(pretrained=str(start)),
        sampler=Sampler(max_new_tokens=6),
        optimizer=functools.partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
        schedule=Schedule("cosine", warmup_steps=10),
        evaluation=Evaluation(max_new_tokens=6),
        group_size=8,
        negative_weight=0.1,
    )
    return fit(module, folder, 200, 64, *callbacks)


def test_sft_learns_from_nothing(supervised):
    _, before, after = supervised
    assert before["high"] < 0.05
    assert 0.3 < after["value"] < 0.6


def test_grpo_raises_accuracy_by_its_reward_alone(supervised, tmp_path):
    before, after = grpo(supervised[0], tmp_path)
    assert before["value"] == supervised[2]["value"], "the export is the model"
    assert after["value"] > before["value"] + 0.15


def test_grpo_with_shuffled_rewards_does_not_improve(supervised, tmp_path):
    before, after = grpo(supervised[0], tmp_path, ShuffledRewards())
    assert after["value"] <= before["high"]


def ppo(start, folder, *callbacks):
    module = PPO(
        PolicySpec(pretrained=str(start)),
        sampler=Sampler(max_new_tokens=6),
        critic_warmup=20,
        group_size=8,
        epochs=1,
        minibatches=1,
        bootstrap=False,
        optimizer=functools.partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
        schedule=Schedule("cosine", warmup_steps=20),
        evaluation=Evaluation(max_new_tokens=6),
        negative_weight=0.1,
    )
    return fit(module, folder, 200, 64, *callbacks)


def test_ppo_raises_accuracy_by_its_reward_alone(supervised, tmp_path):
    before, after = ppo(supervised[0], tmp_path)
    assert after["value"] > before["value"] + 0.15


@pytest.mark.long
def test_ppo_with_shuffled_rewards_does_not_improve(supervised, tmp_path):
    before, after = ppo(supervised[0], tmp_path, ShuffledRewards())
    assert after["value"] <= before["high"]


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory):
    """The start of RPT: a model that was shown reasoning before predictions, but not for long."""
    folder = tmp_path_factory.mktemp("reasoned")
    torch.manual_seed(0)
    module = SFT(
        PolicySpec(config=SMALL, tokenizer="reasoning"), optimizer=adamw(3e-3), evaluation=Evaluation(10, PrefixMatch())
    )
    fit(module, folder, 110, 64, HFExport(), data=ReasonedArithmetic)
    return folder / "export"


def rpt(start, folder, *callbacks):
    module = RPT(
        PolicySpec(pretrained=str(start)),
        template="{context}<think>",
        sampler=Sampler(max_new_tokens=10),
        optimizer=functools.partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
        schedule=Schedule("cosine", warmup_steps=10),
        evaluation=NextTokenEvaluation(10),
        negative_weight=0.1,
    )
    data = functools.partial(Arithmetic, epoch_size=4000, positions=PositionSpec(2, 400))
    return fit(module, folder, 120, 64, *callbacks, data=data)


def test_rpt_raises_next_token_accuracy_by_its_reward_alone(reasoned, tmp_path):
    before, after = rpt(reasoned, tmp_path)
    assert after["value"] > before["value"] + 0.08


@pytest.mark.long
def test_rpt_with_shuffled_rewards_does_not_improve(reasoned, tmp_path):
    before, after = rpt(reasoned, tmp_path, ShuffledRewards())
    assert after["value"] <= before["high"]
