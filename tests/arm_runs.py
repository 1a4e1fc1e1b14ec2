"""Runs with arms on small stories, for tests of the arms and of the callbacks that choose among them."""

import functools

import torch
from conftest import tiny_spec

from lit_rl.algorithms import GRPO
from lit_rl.datamodules import StoryProblems
from lit_rl.evaluation import Evaluation
from lit_rl.rewards import Reward
from lit_rl.sampling import Arm, ArmSampler

STYLES = {"short": "Write the steps alone.", "long": "Say why before each step."}
ARMS = [Arm("short-0.6", "short", 0.6), Arm("short-1", "short", 1.0), Arm("long-0.6", "long", 0.6), Arm("long-1", "long", 1.0)]


class Digits(Reward):
    """A reward that differs within most groups, for a policy that has learned nothing."""

    def score(self, rollouts):
        return torch.tensor([sum(character.isdigit() for character in text) for text in rollouts.texts], dtype=torch.float32)


def stories(**options) -> StoryProblems:
    settings = {"batch_size": 8, "epoch_size": 16, "val_problems": 8, "test_problems": 8, "eval_batch_size": 8}
    return StoryProblems(styles=[], **{**settings, **options})


def grpo(dtype="float32", **options) -> GRPO:
    settings = {"sampler": ArmSampler(max_new_tokens=6, arms=ARMS, styles=STYLES), "reward": Digits(), "group_size": 4}
    settings |= {"optimizer": functools.partial(torch.optim.AdamW, lr=1e-2), "evaluation": Evaluation(max_new_tokens=4)}
    spec = tiny_spec(dtype=dtype)
    spec.tokenizer = "stories"
    return GRPO(spec, **{**settings, "epochs": 2, "minibatches": 2, "kl_coef": 0.1, **options})
