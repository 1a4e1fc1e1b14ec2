"""Reward: judges whole groups of completions, with named parts for the log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lit_rl.options import first_line
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.types import Sample

# Hashable, because a majority vote counts equal answers.
Answer = TypeVar("Answer", bound=Hashable)


class Reward(ABC):
    """Scores completions. Subclass it and write `score`; nothing needs to be registered."""

    @property
    def name(self) -> str:
        """Name of this reward in the log: ``rewards/<name>/mean``."""
        return type(self).__name__.lower()

    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:  # noqa: B027
        """Called before scoring in training; for rewards that ask the policy."""

    @abstractmethod
    def score(self, rollouts: Rollouts) -> Tensor:
        """One number per completion: (N) float, rows in the order of the rollouts, whole groups at once."""

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Named parts, each (N); a reward of one piece is its own only part."""
        return {self.name: self.score(rollouts)}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Reward of each completion, (N), from the parts."""
        return parts[self.name]

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: tensors, strings, numbers, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back a state of `state_dict`; it is empty if the checkpoint holds nothing of this reward."""


class AnswerReward(Reward, Generic[Answer]):
    """Reward for an answer that can be read out of a completion and compared by value; evaluation counts answers and votes.

    Subclass it and write `read` and `is_right`. Each completion with a right answer earns 1, any other 0.
    """

    reads_truncated = False
    """Whether a completion that ran into its limit is read too."""

    @abstractmethod
    def read(self, text: str, sample: Sample) -> Answer | None:
        """Answer in the text of a completion, in a form that compares by value; None without an answer."""

    @abstractmethod
    def is_right(self, answer: Answer | None, sample: Sample) -> bool:
        """Whether an answer is right for a sample."""

    def answers(self, rollouts: Rollouts) -> list[Answer | None]:
        """Answer of each completion; None for a completion without one."""
        rows = zip(rollouts.texts, rollouts.samples, rollouts.truncated.tolist(), strict=True)
        # A cut completion has no end token, and its last number may lack digits.
        return [None if cut and not self.reads_truncated else self.read(text, sample) for text, sample, cut in rows]

    def score(self, rollouts: Rollouts) -> Tensor:
        pairs = zip(self.answers(rollouts), rollouts.samples, strict=True)
        # (N) float, since rewards are averaged and weighted
        return torch.tensor([self.is_right(answer, sample) for answer, sample in pairs], dtype=torch.float32)


class WeightedSum(Reward):
    """A weighted sum of rewards, each logged as a part of its own.

    Args:
        rewards: the rewards to add up; their names must differ.
        weights: one factor for each reward.
    """

    def __init__(self, rewards: list[Reward], weights: list[float]) -> None:
        if len(rewards) != len(weights):
            raise ValueError(f"WeightedSum has {len(rewards)} rewards and {len(weights)} weights; give one weight for each.")
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"WeightedSum has two rewards of one name in {names}; each may stand there once.")
        self.rewards, self.weights = rewards, weights

    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        for reward in self.rewards:
            reward.prepare(actor, rollouts)

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        # Checked one by one, so that an error names the inner reward and not the sum.
        return {name: value for reward in self.rewards for name, value in checked_parts(reward, rollouts).items()}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        # (rewards, N) summed to (N); each reward finds its own parts by name
        return torch.stack([w * reward.total(parts) for w, reward in zip(self.weights, self.rewards, strict=True)]).sum(0)

    def score(self, rollouts: Rollouts) -> Tensor:
        return self.total(self.parts(rollouts))

    def state_dict(self) -> dict[str, Any]:
        return {reward.name: reward.state_dict() for reward in self.rewards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for reward in self.rewards:
            # A reward that was added after the checkpoint finds no state there and starts afresh.
            reward.load_state_dict(state.get(reward.name, {}))


class RewardError(ValueError):
    """A reward failed, or returned anything but one finite number per completion."""


def score_rollouts(reward: Reward, rollouts: Rollouts) -> None:
    """Fill in ``rewards`` and ``parts`` of the rollouts.

    Raises:
        RewardError: if the reward fails, or returns anything but one finite number per completion.
    """
    parts = checked_parts(reward, rollouts)
    total = reward.total(parts)
    _check(reward.name, total, rollouts)
    # Most rewards read texts and so make CPU tensors; advantages are computed on the rollout's device.
    device = rollouts.lengths.device
    rollouts.rewards = total.float().to(device)
    rollouts.parts = {name: value.float().to(device) for name, value in parts.items()}


def checked_parts(reward: Reward, rollouts: Rollouts) -> dict[str, Tensor]:
    """Parts of a reward, each one finite number per completion.

    Raises:
        RewardError: in one line that names the reward.
    """
    try:
        parts = reward.parts(rollouts)
    except RewardError:  # a reward inside this one, already named
        raise
    except Exception as error:
        raise RewardError(f"reward {reward.name}: {type(error).__name__}: {first_line(error)}") from error
    for name, value in parts.items():
        _check(name, value, rollouts)
    return parts


def _check(name: str, value: Tensor, rollouts: Rollouts) -> None:
    if not isinstance(value, Tensor):  # rewards are written by users
        raise RewardError(f"reward {name}: a {type(value).__name__}; return a tensor with one number per completion.")
    # Exact: a (N, 1) reward would broadcast against (N) to (N, N) without an error.
    if value.shape != rollouts.lengths.shape:
        raise RewardError(f"reward {name}: shape {tuple(value.shape)} for {len(rollouts)} completions; return one number each.")
    # One NaN would spread over its whole group by the baseline, and from there to all weights.
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).nonzero()[0])
        number = rollouts.samples[row].number
        raise RewardError(f"reward {name}: {float(value[row])} for sample {number}, completion {rollouts.texts[row]!r}.")
