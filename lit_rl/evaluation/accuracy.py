"""Accuracy on held-out problems: greedy with an interval, pass@k and majority vote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from lit_rl.evaluation.metrics import Proportion, pass_at_k, with_interval
from lit_rl.rewards.answers import ArithmeticAnswer
from lit_rl.rewards.base import AnswerReward
from lit_rl.rewards.majority_vote import majority
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.sampler import Sampler
from lit_rl.types import PromptBatch

EVALUATION_ROLLOUT = 2**32 - 1
"""Rollout number of all evaluation draws; training never reaches it."""


# A module, so that Lightning moves the metrics' sums to the device, where ranks add them up.
class Evaluation(nn.Module):
    """Generates answers to held-out problems and counts the right ones.

    Args:
        max_new_tokens: longest completion in tokens; 0 generates nothing, which leaves SFT its validation loss.
        correct: judges answers.
        samples: sampled completions per problem for pass@k and the majority vote; 0 leaves both out.
        temperature: sampling temperature of these completions.
    """

    def __init__(
        self,
        max_new_tokens: int = 256,
        correct: AnswerReward | None = None,
        samples: int = 0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.correct: AnswerReward[Any] = correct or ArithmeticAnswer()
        self.samples, self.generates = samples, max_new_tokens > 0
        # At least 1, since a sampler refuses 0; `generates` keeps it from being used then.
        self.greedy = Sampler(max_new_tokens=max(1, max_new_tokens), temperature=0.0)
        self.sampled = Sampler(max_new_tokens=max(1, max_new_tokens), temperature=temperature)
        for sampler in (self.greedy, self.sampled):
            sampler.length_option = "evaluation.max_new_tokens"
        names = ["accuracy", "truncated"] if self.generates else []
        if samples and self.generates:
            # Not pass@k: MLflow does not take the sign, and would log the metric under another name than other loggers.
            names += ["pass_at_1", f"pass_at_{samples}", f"maj_at_{samples}"]
        self.proportions = nn.ModuleDict({name: Proportion() for name in names})

    def update(self, actor: Actor, prompts: PromptBatch) -> None:
        """Count in one batch of problems."""
        if not self.generates:
            return
        self.count(self._generate(actor, self.greedy, prompts, 1))
        if self.samples:
            self.count_samples(self._generate(actor, self.sampled, prompts, self.samples))

    def answer(self, actor: Actor, prompts: PromptBatch) -> list[dict[str, str]]:
        """Prompt, greedy completion and reference of each problem."""
        rollouts = self._generate(actor, self.greedy, prompts, 1)
        return [
            {"prompt": sample.prompt, "completion": text, "reference": sample.reference}
            for sample, text in zip(rollouts.prompts.samples, rollouts.texts, strict=True)
        ]

    def count(self, rollouts: Rollouts) -> None:
        """Count in one greedy completion of each problem."""
        self._add("accuracy", self.correct.hits(rollouts))
        self._add("truncated", rollouts.truncated)

    def count_samples(self, rollouts: Rollouts) -> None:
        """Count in ``samples`` completions of each problem, one problem after another."""
        size = self.samples
        answers = self.correct.answers(rollouts)
        # (P) right answers of each problem; groups are numbered in the order of prompts, as samples are
        right = rollouts.per_group(self.correct.hits(rollouts), lambda group: group.sum(1)).long().tolist()
        samples = rollouts.prompts.samples
        # Rows of a sampler stand in the order of prompts, `size` rows each.
        votes = [majority(answers[first : first + size]) for first in range(0, len(answers), size)]
        voted = [self.correct.is_right(vote, sample) for vote, sample in zip(votes, samples, strict=True)]
        # A set: with one sample, pass_at_1 must not count twice.
        for k in {1, size}:
            self._add(f"pass_at_{k}", torch.tensor([pass_at_k(size, count, k) for count in right], dtype=torch.float64))
        self._add(f"maj_at_{size}", torch.tensor(voted))

    def _generate(self, actor: Actor, sampler: Sampler, prompts: PromptBatch, size: int) -> Rollouts:
        # One number for all evaluations: a problem's draws stay the same, and two evaluations differ by the policy alone.
        return actor.generate(sampler, actor.renderer.render(prompts), size, EVALUATION_ROLLOUT)

    def _add(self, name: str, values: torch.Tensor) -> None:
        cast("Proportion", self.proportions[name]).update(values)

    def compute(self) -> dict[str, float]:
        """Metrics over all ranks, each with ``_low`` and ``_high`` of its interval; the next evaluation starts from nothing."""
        metrics: dict[str, float] = {}
        for name, metric in cast("Iterable[tuple[str, Proportion]]", self.proportions.items()):
            value = metric.compute()
            if value["count"]:  # some have no problems of their kind
                metrics |= with_interval(name, value)
            # Lightning resets only metrics that are logged as objects, and here numbers are logged.
            metric.reset()
        return metrics
