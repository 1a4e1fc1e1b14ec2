"""Each algorithm learns: a curve that must rise, beside a control that must not. About 10 s each on one thread."""

import functools

import pytest
import torch
from lightning.pytorch.callbacks import Callback
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


class Rewards(Callback):
    """Mean true reward of every step's rollout: 256 completions each."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["reward"]))


def learn(module, folder, steps, *callbacks, data=Arithmetic) -> tuple[dict, dict, float]:
    """Held-out accuracy before and after training, and the gain in reward from the first 5 steps to the last 5."""
    rewards = Rewards()
    before, after = fit(module, folder, steps, 64, rewards, *callbacks, data=data)
    first, last = sum(rewards.values[:5]) / 5, sum(rewards.values[-5:]) / 5
    print(f"reward {first:.3f} -> {last:.3f}, accuracy {before['value']:.3f} -> {after['value']:.3f}")
    return before, after, last - first


def options(start, warmup_steps=10) -> dict:
    """Options that all algorithms share: 64 groups of 4 completions a step."""
    return {
        "policy": PolicySpec(pretrained=str(start)),
        "optimizer": functools.partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
        "schedule": Schedule("cosine", warmup_steps=warmup_steps),
        "group_size": 4,
        "negative_weight": 0.1,
    }


def grpo(start) -> GRPO:
    return GRPO(**options(start), sampler=Sampler(6), evaluation=Evaluation(6))


def ppo(start) -> PPO:
    critic = {"critic_warmup": 10, "epochs": 1, "minibatches": 1, "bootstrap": False}
    return PPO(**options(start), **critic, sampler=Sampler(6), evaluation=Evaluation(6))


def rpt(start) -> RPT:
    return RPT(**options(start), template="{context}<think>", sampler=Sampler(10), evaluation=NextTokenEvaluation(10))


def test_sft_learns_from_nothing(supervised):
    _, before, after = supervised
    assert before["high"] < 0.05
    assert 0.4 < after["value"] < 0.85, "it has learned, and leaves something to learn"


def test_grpo_raises_accuracy_by_its_reward_alone(supervised, tmp_path):
    before, after, gain = learn(grpo(supervised[0]), tmp_path, 100)
    assert before["value"] == supervised[2]["value"], "the export is the model"
    assert gain > 0.1
    assert after["value"] > before["high"]


def test_grpo_with_shuffled_rewards_does_not_improve(supervised, tmp_path):
    before, after, gain = learn(grpo(supervised[0]), tmp_path, 50, ShuffledRewards())
    assert gain < 0.0
    assert after["value"] <= before["high"]


def test_ppo_raises_accuracy_by_its_reward_alone(supervised, tmp_path):
    before, after, gain = learn(ppo(supervised[0]), tmp_path, 100)
    assert gain > 0.1
    assert after["value"] > before["high"]


@pytest.mark.long
def test_ppo_with_shuffled_rewards_does_not_improve(supervised, tmp_path):
    before, after, _ = learn(ppo(supervised[0]), tmp_path, 100, ShuffledRewards())
    assert after["value"] <= before["high"]


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory):
    """The start of RPT: a model that was shown reasoning before predictions, but not for long."""
    folder = tmp_path_factory.mktemp("reasoned")
    torch.manual_seed(0)
    module = SFT(
        PolicySpec(config=SMALL, tokenizer="reasoning"), optimizer=adamw(3e-3), evaluation=Evaluation(10, PrefixMatch())
    )
    fit(module, folder, 160, 64, HFExport(), data=ReasonedArithmetic)
    return folder / "export"


POSITIONS = functools.partial(Arithmetic, epoch_size=4000, positions=PositionSpec(2, 400))


def test_rpt_raises_next_token_accuracy_by_its_reward_alone(reasoned, tmp_path):
    before, after, gain = learn(rpt(reasoned), tmp_path, 80, data=POSITIONS)
    assert gain > 0.1
    assert after["value"] > before["high"]


@pytest.mark.long
def test_rpt_with_shuffled_rewards_does_not_improve(reasoned, tmp_path):
    before, after, _ = learn(rpt(reasoned), tmp_path, 80, ShuffledRewards(), data=POSITIONS)
    assert after["value"] <= before["high"]
