"""Real runs of GRPO with a tiny model, watched, for tests of its options; gradients by the slow reference to compare with."""

import functools

import slow_reference as slow
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from torch import Tensor

from lit_rl.algorithms import GRPO
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.rewards import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler

LIMIT = 6
STILL = functools.partial(torch.optim.SGD, lr=0.0)
"""Gradients are what is looked at; the policy stays where it is."""
MOVING = functools.partial(torch.optim.AdamW, lr=1e-2)


class Length(Reward):
    """A reward that differs within most groups."""

    def score(self, rollouts):
        return torch.tensor([text.count("<") + len(text) % 5 for text in rollouts.texts], dtype=torch.float32)


class HalfLength(Length):
    """Every other group has equal rewards, hence no gradient."""

    def score(self, rollouts):
        lengths = super().score(rollouts)
        return lengths * (torch.arange(len(lengths)) // rollouts.rows_per_prompt % 2)


class Watch(RolloutCallback):
    """Keeps every rollout, every step's gradient and prompts, and its metrics."""

    def __init__(self, change=None):
        self.change = change
        self.rollouts, self.gradients, self.prompts, self.metrics = [], [], [[]], []

    def on_rollout_end(self, trainer, module, rollouts):
        if self.change:
            self.change(module, rollouts, len(self.rollouts))
        self.rollouts.append(rollouts)
        return rollouts

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.prompts[-1] += batch.rows.prompts.samples

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append(flat([p.grad for p in module.policy.parameters() if p.grad is not None]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch.last:
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
            self.prompts.append([])


def flat(tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).detach().clone()


def watched(folder, change=None, data=None, steps=1, accumulate=1, dtype="float32", **options) -> tuple[GRPO, Watch]:
    """A run of a few steps on what a tiny GPT-2 says."""
    settings = {"group_size": 4, "sampler": Sampler(max_new_tokens=LIMIT), "reward": Length(), "optimizer": STILL}
    settings["evaluation"] = Evaluation(max_new_tokens=4)
    module, watch = GRPO(tiny_spec("gpt2", dtype), **{**settings, **options}), Watch(change)
    trainer = quiet_trainer(folder, max_steps=steps, accumulate_grad_batches=accumulate, callbacks=[watch])
    trainer.fit(module, data or tiny_data())
    return module, watch


def slow_rows(rollouts: Rollouts) -> list[slow.Row]:
    """The rows of a rollout as the slow reference takes them, advantages computed."""

    def cut(values: Tensor | None) -> list:
        rows = [None] * len(rollouts) if values is None else values.tolist()
        return [row and row[:length] for row, length in zip(rows, rollouts.lengths.tolist(), strict=True)]

    columns = (rollouts.logprobs, rollouts.advantages, rollouts.tensors.get("old_logprobs"))
    return [slow.Row(*row) for row in zip(*map(cut, columns), strict=True)]


def policy_gradient(module: GRPO, rollouts: Rollouts, rows: list[slow.Row]) -> Tensor:
    """The gradient by the weights, by the slow reference on the log-probabilities of whole rollouts."""
    scores = module.policy.score(rollouts)
    logprobs = [list(row[: len(slow_row.sampler)]) for row, slow_row in zip(scores.logprobs, rows, strict=True)]
    zeros = [[torch.zeros(())] * len(row) for row in logprobs]
    loss = slow.step_loss(module.objective, rows, logprobs, zeros, 0.0, 0.0, LIMIT)
    return flat(torch.autograd.grad(loss, list(module.policy.parameters())))


def assert_same(a: Tensor, b: Tensor, bound: float) -> None:
    assert float(b.norm()) > 1e-3
    assert float((a - b).norm() / b.norm()) < bound


# The shares of tokens are float32 in a run: 6e-8.
SHARES = 1e-6
