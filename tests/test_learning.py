"""Each algorithm learns: a curve that must rise, beside a control that must not. At most 60 s each on one thread."""

import functools

import pytest
import torch
from miniature import fit

from lit_rl.algorithms import GRPO
from lit_rl.callbacks import ShuffledRewards
from lit_rl.evaluation import Evaluation
from lit_rl.loading import PolicySpec
from lit_rl.sampling.sampler import Sampler
from lit_rl.schedule import Schedule

pytestmark = pytest.mark.learning


def grpo(start, folder, *callbacks):
    module = GRPO(
        PolicySpec(pretrained=str(start)),
        Sampler(max_new_tokens=6),
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
