"""Runs that are stopped and resumed, and the comparison of their ends."""

import functools
import os
import signal

import torch
from conftest import TINY, quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lit_rl.algorithms import GRPO, PPO, RPT, SFT
from lit_rl.evaluation import Evaluation, NextTokenEvaluation
from lit_rl.models import PolicySpec
from lit_rl.rewards import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler
from lit_rl.training import Schedule

STEPS = 12


class Stopped(Exception):
    """Stands for a process that dies."""


class Seen(Callback):
    """Numbers of the prompts and sampled texts by optimizer step."""

    def __init__(self):
        self.by_step = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if isinstance(batch.rows, Rollouts):
            self.by_step.setdefault(trainer.global_step, []).append((batch.rows.prompts.numbers, batch.rows.texts))


class Logged(Logger):
    """Logged metrics by step, except times and speeds."""

    name, version = "metrics", 0

    def __init__(self):
        super().__init__()
        self.by_step = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        kept = {name: value for name, value in metrics.items() if not name.startswith(("time/", "perf/", "val/"))}
        self.by_step.setdefault(step, {}).update(kept)


class Stopper(Callback):
    """Dies before the first micro-batch after a step, when the checkpoint of the step has been written."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Stopped


class Killed(Callback):
    """Kills its process while the checkpoint of a step is made, before anything of it is on disk."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save_checkpoint(self, trainer, module, checkpoint):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def sft():
    # gpt2 has dropout: the global generator's state matters.
    return SFT(
        tiny_spec("gpt2"),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule("cosine", warmup_steps=2),
        evaluation=Evaluation(max_new_tokens=4),
    )


def grpo():
    return GRPO(
        tiny_spec(),
        sampler=Sampler(max_new_tokens=4),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule("cosine", warmup_steps=2),
        evaluation=Evaluation(max_new_tokens=4, samples=2),
        group_size=4,
        epochs=2,
        minibatches=2,
        kl_coef=0.1,
        entropy_coef=0.01,
    )


def ppo():
    """Rollouts end early at this target, some after two steps and some later."""
    return PPO(
        tiny_spec(),
        sampler=Sampler(max_new_tokens=4),
        critic=tiny_spec("gpt2"),
        critic_lr=3e-3,
        critic_warmup=2,
        reward=Guess(),
        optimizer=functools.partial(torch.optim.AdamW, lr=3e-3),
        evaluation=Evaluation(max_new_tokens=4, samples=2),
        kl_coef=0.1,
        epochs=2,
        minibatches=2,
        target_kl=1e-3,
    )


def rpt():
    return RPT(
        PolicySpec(config={"model_type": "llama", **TINY}, tokenizer="reasoning"),
        template="{context}<think>",
        reward=Guess(),
        sampler=Sampler(max_new_tokens=4),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        evaluation=NextTokenEvaluation(max_new_tokens=4),
        group_size=2,
        minibatches=2,
    )


class Guess(Reward):
    """Equal in many groups, so that there is something to refill."""

    def score(self, rollouts):
        return (rollouts.completion_ids[:, 0] % 3 == 0).float()


def run(build, folder, epoch_size, callbacks=(), ckpt_path=None, data=None, **options):
    """Module, Trainer, and what was sampled and logged by step."""
    torch.manual_seed(1)
    seen, metrics, module = Seen(), Logged(), build()
    settings = {"max_steps": STEPS, "enable_checkpointing": True, "gradient_clip_val": 1.0, **options}
    trainer = quiet_trainer(folder, logger=metrics, callbacks=[seen, *callbacks], **settings)
    trainer.fit(module, data or tiny_data(epoch_size=epoch_size), ckpt_path=ckpt_path)
    return module, trainer, seen.by_step, metrics.by_step


def assert_same_end(whole, resumed, first_step):
    module, trainer, sampled, metrics = whole
    other, other_trainer, other_sampled, other_metrics = resumed
    assert trainer.global_step == other_trainer.global_step == STEPS
    for (name, value), other_value in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, other_value), name
    states = trainer.optimizers[0].state_dict(), other_trainer.optimizers[0].state_dict()
    assert str(states[0]) == str(states[1])
    for step in range(first_step, STEPS):
        assert metrics[step] == other_metrics[step], step
        assert sampled.get(step) == other_sampled.get(step), step
