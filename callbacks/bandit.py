"""Bandit: draws each question from the few arms that promise most, and learns which they are."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lit_rl.algorithms import PolicyGradient
from lit_rl.options import check_choice, check_least
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.sampling import ArmSampler
from lit_rl.sampling.bandit import ArmStatistics, Method
from lit_rl.sampling.sampler import SampleKey
from lit_rl.training.stream import MicroBatch

from .metered import MeteredCallback

Signal = Literal["reward", "advantage"]

CHOICE = 1
"""Last number of the key of a choice, which keeps it apart from the draws of the question's tokens."""


class Bandit(MeteredCallback):
    """Chooses the arms of each question among those of `lit_rl.sampling.ArmSampler`, by what they have earned.

    The rows of a question take turns among its arms. A choice depends on the seed, the rollout, the question's number and the
    rewards before the rollout, which are summed over all ranks; so it is the same on any number of ranks, and after a restart.
    The log has the mean of what an arm earned as ``arms/<name>/value``. With `DynamicSampling` the final batch counts.

    Args:
        method: ``thompson`` (Thompson sampling: other arms for each question) or ``ucb`` (upper confidence bounds: the same
            arms for all questions of a rollout, once all arms have been drawn).
        signal: what an arm earns with a row: its ``reward``, or the size of its ``advantage``, the learning signal of SEC
            (arXiv 2505.14970), which is small if all rows of a question are equally good.
        arms_per_question: different arms among the rows of a question, fewer than there are.
        exploration: factor on the bounds of ``ucb``; 0 takes the arms of the highest means.
        decay: factor on all earlier earnings at each rollout, since the policy changes; 1 forgets nothing.
    """

    def __init__(
        self,
        method: Method = "thompson",
        signal: Signal = "reward",
        arms_per_question: int = 4,
        exploration: float = 1.0,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("Bandit.method", method, Method)
        check_choice("Bandit.signal", signal, Signal)
        self.method: Method = method
        self.signal: Signal = signal
        self.arms_per_question, self.exploration, self.decay = arms_per_question, exploration, decay
        check_least(self, "Bandit", arms_per_question=1, exploration=0)
        if not 0 < decay <= 1:
            raise ValueError(f"Bandit.decay is {decay}; write a factor above 0, up to 1 (forgets nothing).")
        self.statistics = ArmStatistics(0)
        self._names: list[str] = []

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        sampler = _sampler(module)
        names = list(sampler.arm_names)
        if self.arms_per_question >= len(names):
            raise ValueError(
                f"Bandit.arms_per_question is {self.arms_per_question} of {len(names)} arms, which leaves nothing to choose; "
                "write fewer, or remove the callback."
            )
        if self._names != names:  # else another fit goes on with what the last one has learned
            self.statistics, self._names = ArmStatistics(len(names), self.decay), names
        # Before the module's own `setup`, which asks whether somebody chooses.
        sampler.choose = self._choose

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            _sampler(module).choose = None

    def _choose(self, key: SampleKey, number: int, group_size: int) -> list[int]:
        draws = np.random.default_rng([*key, number, CHOICE])
        arms = self.statistics.choose(self.method, min(self.arms_per_question, group_size), draws, self.exploration)
        return [arms[member % len(arms)] for member in range(group_size)]

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: MicroBatch, batch_idx: int) -> None:
        # Once a rollout, before its first step: advantages are known, and no row has been left out or merged.
        if batch.first and batch.on_policy and isinstance(module, PolicyGradient):
            totals = earnings(module.experience.rollouts, self.signal, len(self._names))
            self.statistics.add(Runtime(trainer).sum(totals).cpu().numpy())
            drawn = zip(self._names, self.statistics.means.tolist(), self.statistics.totals[0].tolist(), strict=True)
            self.metrics = {f"arms/{name}/value": mean for name, mean, count in drawn if count}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"names": self._names, **self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["names"] != self._names:
            raise ValueError(
                f"Bandit: the checkpoint's run drew from the arms {', '.join(state['names'])}, and this run draws from "
                f"{', '.join(self._names)}; leave model.sampler as it was."
            )
        super().load_state_dict(state)
        self.statistics.load_state_dict(state)


def earnings(rollouts: Rollouts, signal: Signal, arms: int) -> Tensor:
    """(3, arms) float64: number, sum and sum of squares of what the scored rows of each arm earn."""
    earned = rollouts.rewards
    if signal == "advantage":
        earned = rollouts.advantages.abs().sum(1) / rollouts.sampled.sum(1).clamp(min=1)  # (N), mean over sampled tokens
    earned, counted = earned.double(), rollouts.scored.double()
    rows = torch.stack([counted, counted * earned, counted * earned**2])  # (3, N)
    # Gathered by a product: `index_add` on a GPU adds in no fixed order.
    return rows @ torch.nn.functional.one_hot(rollouts.arm, arms).double()


def _sampler(module: pl.LightningModule) -> ArmSampler:
    if not isinstance(module, PolicyGradient) or not isinstance(module.sampler, ArmSampler):
        raise ValueError("Bandit chooses among arms, and this run has none; write model.sampler.class_path ArmSampler.")
    return module.sampler
