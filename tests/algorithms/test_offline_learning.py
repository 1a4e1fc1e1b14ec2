"""Learning from one frozen file of recorded rollouts: held-out accuracy must rise, beside a control that must not."""

import functools

import pytest
import torch
from miniature import improvement
from recorded_runs import record

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.callbacks import ShuffledRewards
from lit_rl.datamodules import Arithmetic, Recorded
from lit_rl.evaluation import Evaluation
from lit_rl.models import PolicySpec
from lit_rl.objectives import Correction, Objective
from lit_rl.sampling import Sampler
from lit_rl.tasks.infix import Grammar
from lit_rl.training import Schedule

pytestmark = pytest.mark.learning
CORRECTED = Objective(kl_in="loss", correction=Correction("truncate"))


def problems() -> Arithmetic:
    """The miniature: the larger or smaller of two numbers."""
    grammar = Grammar(["max", "min"], signed=False)
    return Arithmetic(grammar, val_problems=400, test_problems=1, eval_batch_size=400)


@pytest.fixture(scope="module")
def recorded(supervised, tmp_path_factory):
    """Eight answers to each of 2,000 training questions, by the model that SFT left."""
    policy = PolicySpec(pretrained=str(supervised[0]))
    module = GRPO(policy, group_size=8, sampler=Sampler(6), evaluation=Evaluation(6))
    return record(tmp_path_factory.mktemp("recorded"), module, 2000, problems())


def options(start, lr) -> dict:
    return {
        "policy": PolicySpec(pretrained=str(start)),
        "optimizer": functools.partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
        "schedule": Schedule("cosine", warmup_steps=10),
        "evaluation": Evaluation(6),
    }


def learn(module, folder, path, steps, batch_size, *callbacks, **data) -> tuple[dict, dict]:
    """Held-out accuracy before and after training on the file."""
    before, after = improvement(
        module, Recorded(str(path), problems(), batch_size=batch_size, **data), folder, steps, *callbacks
    )
    assert before
    assert after
    print(f"accuracy {before['value']:.3f} -> {after['value']:.3f}")
    return before, after


def grpo(start) -> GRPO:
    return GRPO(**options(start, 2e-3), negative_weight=0.1, objective=CORRECTED)


@pytest.mark.long
def test_offline_grpo_raises_accuracy(supervised, recorded, tmp_path):
    before, after = learn(grpo(supervised[0]), tmp_path, recorded, 60, 32)
    assert before["value"] == supervised[2]["value"], "the policy that recorded"
    assert after["value"] > before["high"]


def test_offline_ppo_raises_accuracy(supervised, recorded, tmp_path):
    critic = {"critic_warmup": 10, "epochs": 1, "minibatches": 2, "bootstrap": False}
    module = PPO(**options(supervised[0], 2e-3), **critic, negative_weight=0.1, objective=CORRECTED)
    before, after = learn(module, tmp_path, recorded, 60, 128)
    assert after["value"] > before["high"]


@pytest.mark.long
def test_sft_on_right_answers_raises_accuracy(supervised, recorded, tmp_path):
    module = SFT(**options(supervised[0], 1e-3))
    before, after = learn(module, tmp_path, recorded, 50, 64, best=1, min_reward=1.0)
    assert after["value"] > before["high"]


@pytest.mark.long
def test_offline_grpo_with_shuffled_rewards_does_not_improve(supervised, recorded, tmp_path):
    before, after = learn(grpo(supervised[0]), tmp_path, recorded, 60, 32, ShuffledRewards())
    assert after["value"] <= before["high"]
