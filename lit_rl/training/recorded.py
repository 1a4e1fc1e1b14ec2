"""Recorded collector: scored completions of prompts that were sampled before, read instead of sampled."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_rl.datamodules.recorded import Recorded
from lit_rl.models.sources import fingerprint
from lit_rl.objectives.objective import Objective
from lit_rl.objectives.overlong import Overlong
from lit_rl.rewards.base import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.renderer import Renderer
from lit_rl.sampling.sampler import Sampler
from lit_rl.training.collector import Collector
from lit_rl.types import PromptBatch


class RecordedCollector(Collector):
    """Takes completions of the questions from recorded rollouts, drawn at random if more are recorded than a group has.

    Draws depend on the run's seed, the number of the rollout and the question alone. Hooks before sampling are not called.

    Args:
        actor: the policy that learns.
        data: the recorded rollouts.
        reward: scores completions.
        overlong: treatment of completions that are too long.
        group_size: completions per question.
        rescores: whether the reward scores the completions again; False keeps the recorded rewards.
    """

    def __init__(
        self, actor: Actor, data: Recorded, reward: Reward, overlong: Overlong, group_size: int, *, rescores: bool
    ) -> None:
        limit = max(each.max_new_tokens for each in data.recordings.values())
        super().__init__(actor, Sampler(max_new_tokens=limit), reward, overlong, group_size)
        self._recordings, self._rescores = data.recordings, rescores
        self._own: bool | None = None  # whether the policy that learns has sampled the rollouts itself

    @property
    def on_policy(self) -> bool:
        return bool(self._own) and self.actor.runtime.step == 0

    def collect(self, prompts: PromptBatch) -> Rollouts:
        rollouts = super().collect(prompts)
        del self.metrics["perf/rollout_tokens_per_second"]  # nothing was sampled
        return rollouts

    def _sample(self, prompts: PromptBatch, round: int) -> Rollouts:
        if self._own is None:  # not earlier, since sharded weights are whole only now
            self._own = self._recorded_by(self.actor)
        taken = [self._group(number, round) for number in prompts.numbers]
        return Rollouts.join(taken).to(self.actor.runtime.device)

    def _recorded_by(self, actor: Actor) -> bool:
        """Whether the recordings are of these very weights; False if weights are never whole, which cannot be told then."""
        if actor.runtime.sharded and actor.policy.spec.unshard == "layer":
            return False
        own = fingerprint(actor.policy.model)
        return all(each.weights == own for each in self._recordings.values())

    def _group(self, number: int, round: int) -> Rollouts:
        """Completions of a question, as one group."""
        recorded = self._recordings[number].rollouts
        count = min(self.group_size, len(recorded))
        random = np.random.default_rng([self.actor.seed, self.number, number, round])
        # In the order of the recording.
        rows = np.sort(random.permutation(len(recorded))[:count]).tolist()
        group = recorded.select(rows)  # each row is a group of its own there
        group.group = torch.zeros_like(group.group)
        return group

    def _score(self, rollouts: Rollouts) -> Rollouts:
        if self._rescores:
            rollouts.scored = rollouts.in_loss = torch.ones_like(rollouts.truncated)
            return super()._score(rollouts)
        rollouts = rollouts.drop_unscored()
        self.overlong.apply(rollouts, self.sampler.max_new_tokens)
        return rollouts


def check_replay(
    data: Recorded,
    renderer: Renderer,
    group_size: int,
    objective: Objective,
    kl_coef: float,
    overlong: Overlong,
    rescores: bool,
) -> None:
    """Refuse options that go wrong on rollouts that another policy has sampled.

    Raises:
        ValueError: with what to write instead.
    """
    if type(renderer) is not Renderer:
        raise ValueError("RPT learns positions of texts, and recorded rollouts are of questions; write GRPO or PPO.")
    most = max(len(each.rollouts) for each in data.recordings.values())
    if group_size > most:
        raise ValueError(
            f"model.group_size is {group_size}, but at most {most} completions of a question are recorded; lower it."
        )
    rewards = [each.rollouts.rewards for each in data.recordings.values()]
    if group_size > 1 and not rescores and all(bool((each == each[0]).all()) for each in rewards):
        rank_zero_warn(
            "data.path: all completions of a question have one recorded reward, so a baseline within the group has nothing to "
            "compare; give model.reward, or record with a reward for each response."
        )
    if kl_coef and objective.kl_in == "reward":
        raise ValueError(
            "objective.kl_in reward takes the KL of the policy that sampled, which recorded rollouts hold fixed; "
            "write objective.kl_in loss, or model.kl_coef 0."
        )
    if objective.surrogate == "reinforce" and objective.correction.method == "none":
        raise ValueError(
            "objective.surrogate reinforce is right on the policy that sampled alone; with recorded rollouts write "
            "objective.correction.method truncate too, or another surrogate."
        )
    if overlong.action == "penalize" and not rescores:
        raise ValueError("model.overlong penalize changes a reward that is recorded; give model.reward, or leave penalize out.")
