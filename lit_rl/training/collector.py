"""Collector: prompts in, scored completions out. Contains no learning."""

from __future__ import annotations

import time

import torch

from lit_rl.objectives.overlong import Overlong
from lit_rl.rewards.base import Reward, score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.sampler import Sampler
from lit_rl.types import PromptBatch


class Collector:
    """Renders prompts, samples completions and scores them; calls the hooks of rollout callbacks before and after.

    Args:
        actor: samples the completions.
        sampler: settings of sampling.
        reward: scores completions.
        overlong: treatment of completions that are too long.
        group_size: completions per prompt.
    """

    def __init__(self, actor: Actor, sampler: Sampler, reward: Reward, overlong: Overlong, group_size: int) -> None:
        self.actor, self.sampler, self.reward = actor, sampler, reward
        self.overlong, self.group_size = overlong, group_size
        self.number = 0  # of the rollout under way, which keys sampling; `Experience` counts it up
        self.metrics: dict[str, float] = {}  # metrics of the last rollout; times are of its first draw
        self._errors = 0  # completions of the rollout under way that could not be scored

    @property
    def on_policy(self) -> bool:
        """Whether the policy that learns has sampled the last rollout, and has not moved since the rollout began."""
        return True

    def collect(self, prompts: PromptBatch) -> Rollouts:
        """Next rollout: scored completions of a batch of prompts, after all hooks."""
        start, self._errors = time.perf_counter(), 0
        rollouts = self._sample(prompts, round=0)
        # `int` waits for the GPU, so that the clock below is right. Other ranks are taken to sample as many tokens.
        tokens = int(rollouts.lengths.sum()) * self.actor.runtime.ranks
        sampled = time.perf_counter()
        rollouts = self._score(rollouts)
        self.metrics = {
            "time/rollout": sampled - start,
            "time/reward": time.perf_counter() - sampled,
            "perf/rollout_tokens_per_second": tokens / (sampled - start),
        }
        rollouts = self.actor.runtime.on_rollout_end(rollouts)
        if self.reward.skips_errors:  # after the hooks, which may draw more
            self.metrics["reward/errors"] = float(self.actor.runtime.sum(torch.tensor(float(self._errors))))
        return rollouts

    def draw(self, prompts: PromptBatch, round: int) -> Rollouts:
        """Scored completions of more prompts for the current rollout; its last hook is not called.

        Args:
            prompts: prompts of the data.
            round: number of the draw in the rollout, from 1 after `collect`; a prompt that comes again gets other completions.
        """
        return self._score(self._sample(prompts, round))

    def _sample(self, prompts: PromptBatch, round: int) -> Rollouts:
        shown = self.actor.renderer.render(prompts.to(self.actor.runtime.device))
        # After rendering, so that hooks see the tokens that the policy will see.
        shown = self.actor.runtime.on_rollout_start(shown)
        return self.actor.generate(self.sampler, shown, self.group_size, self.number, round)

    def _score(self, rollouts: Rollouts) -> Rollouts:
        self.reward.prepare(self.actor, rollouts)
        score_rollouts(self.reward, rollouts)
        self._errors += int((~rollouts.scored).sum())
        rollouts = rollouts.drop_unscored()
        # Last, since scoring sets the rewards that a penalty is added to.
        self.overlong.apply(rollouts, self.sampler.max_new_tokens)
        return rollouts
