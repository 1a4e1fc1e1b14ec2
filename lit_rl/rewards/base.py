"""Reward: judges whole groups of completions, with named parts for the log."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lit_rl.options import first_line
from lit_rl.rewards.notation import after_thought
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.types import Sample

# Hashable, because a majority vote counts equal answers.
Answer = TypeVar("Answer", bound=Hashable)


class Reward(ABC):
    """Scores completions. Subclass it and write `score`; nothing needs to be registered."""

    alone = False
    """Whether the score of a completion depends on nothing but this completion and its sample."""
    one_per_group = False
    """Whether all completions of a group earn the same, so that a comparison within the group has nothing to compare."""
    skips_errors = False
    """Whether NaN is the score of a completion that could not be scored and is left out of the loss (`Guarded`)."""

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

    @property
    def asks_policy(self) -> bool:
        """Whether scoring needs `prepare`."""
        return type(self).prepare is not Reward.prepare

    def example(self, sample: Sample) -> str:
        """A completion that should earn something: scored before the first step (`lit_rl.training.dry_run`)."""
        return sample.completion or sample.reference

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: tensors, strings, numbers, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back a state of `state_dict`; it is empty if the checkpoint holds nothing of this reward."""


class AnswerReward(Reward, Generic[Answer]):
    """Reward for an answer that can be read out of a completion and compared by value; evaluation counts answers and votes.

    Subclass it and write `read` and `is_right`. Each completion with a right answer earns 1, any other 0.
    """

    alone = True
    reads_truncated = False
    """Whether a completion that ran into its limit is read too."""
    reads_thoughts = False
    """Whether `read` gets the whole text; by default it gets what follows the last thought, ``<think>...</think>``."""

    @abstractmethod
    def read(self, text: str, sample: Sample) -> Answer | None:
        """Answer in the text of a completion, in a form that compares by value; None without an answer."""

    @abstractmethod
    def is_right(self, answer: Answer | None, sample: Sample) -> bool:
        """Whether an answer is right for a sample."""

    def reasoning(self, text: str) -> str:
        """Part of a completion before its answer, for readers of recorded rollouts; default: all of it."""
        return text

    def answers(self, rollouts: Rollouts) -> list[Answer | None]:
        """Answer of each completion; None for a completion without one."""
        rows = zip(rollouts.texts, rollouts.samples, rollouts.truncated.tolist(), strict=True)
        # A cut completion has no end token, and its last number may lack digits.
        return [None if cut and not self.reads_truncated else self._answer(text, sample) for text, sample, cut in rows]

    def _answer(self, text: str, sample: Sample) -> Answer | None:
        rest = text if self.reads_thoughts else after_thought(text, sample.prompt)
        return None if rest is None else self.read(rest, sample)

    def hits(self, rollouts: Rollouts) -> Tensor:
        """Whether each completion is right: (N) float of 0 and 1, which an evaluation counts."""
        return self.score(rollouts)

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

    @property
    def alone(self) -> bool:  # type: ignore[override]
        return all(reward.alone for reward in self.rewards)

    @property
    def skips_errors(self) -> bool:  # type: ignore[override]
        return any(reward.skips_errors for reward in self.rewards)

    @property
    def asks_policy(self) -> bool:
        return any(reward.asks_policy for reward in self.rewards)

    def example(self, sample: Sample) -> str:
        return self.rewards[0].example(sample) if self.rewards else super().example(sample)

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
    """Fill in ``rewards`` and ``parts`` of the rollouts, and ``scored`` if the reward skips errors.

    Raises:
        RewardError: if the reward fails, or returns anything but one finite number per completion.
    """
    parts = checked_parts(reward, rollouts)
    total = reward.total(parts)
    _check(reward.name, total, rollouts, reward.skips_errors)
    # Most rewards read texts and so make CPU tensors; advantages are computed on the rollout's device.
    device = rollouts.lengths.device
    rollouts.rewards = total.float().nan_to_num().to(device)
    rollouts.parts = {name: value.float().nan_to_num().to(device) for name, value in parts.items()}
    if reward.skips_errors:
        rollouts.scored = ~total.isnan().to(device)
        rollouts.in_loss = rollouts.in_loss & rollouts.scored


def checked_parts(reward: Reward, rollouts: Rollouts) -> dict[str, Tensor]:
    """Parts of a reward, each one finite number per completion, or NaN where the reward skips an error.

    Raises:
        RewardError: in one line that names the reward.
    """
    try:
        parts = reward.parts(rollouts)
    except RewardError:  # a reward inside this one, already named
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)}{_sample_of(error, reward, rollouts)}"
        raise RewardError(f"reward {reward.name}: {cause}") from error
    for name, value in parts.items():
        _check(name, value, rollouts, reward.skips_errors)
    return parts


def units(rollouts: Rollouts, alone: bool) -> Iterator[tuple[Tensor, Rollouts]]:
    """Parts of rollouts that are scored without the others: each row, or each group; with the numbers of their rows."""
    if alone:
        rollouts = copy.copy(rollouts)
        rollouts.group = torch.arange(len(rollouts), device=rollouts.group.device)
    for group in range(rollouts.num_groups):
        yield rollouts.rows_of([group]).cpu(), rollouts.select([group])


def _sample_of(error: Exception, reward: Reward, rollouts: Rollouts) -> str:
    """Sample whose completions raise the error again when they are scored without the others, to quote in a message."""
    if " sample " in str(error):  # named already
        return ""
    if len(numbers := {sample.number for sample in rollouts.samples}) == 1:
        return f" (sample {numbers.pop()})"
    for _, unit in units(rollouts, reward.alone):
        try:
            reward.parts(unit)
        except Exception as again:  # rewards are written by users
            if (type(again), str(again)) == (type(error), str(error)):
                return f" (sample {unit.samples[0].number})"
    return ""


def _check(name: str, value: Tensor, rollouts: Rollouts, nan_allowed: bool) -> None:
    if not isinstance(value, Tensor):  # rewards are written by users
        raise RewardError(f"reward {name}: a {type(value).__name__}; return a tensor with one number per completion.")
    # Exact: a (N, 1) reward would broadcast against (N) to (N, N) without an error.
    if value.shape != rollouts.lengths.shape:
        raise RewardError(f"reward {name}: shape {tuple(value.shape)} for {len(rollouts)} completions; return one number each.")
    if value.requires_grad:
        raise RewardError(f"reward {name}: a tensor that requires grad; return it detached, or compute it under torch.no_grad.")
    # One NaN would spread over its whole group by the baseline, and from there to all weights.
    wrong = value.isinf() if nan_allowed else ~value.isfinite()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        number = rollouts.samples[row].number
        raise RewardError(f"reward {name}: {float(value[row])} for sample {number}, completion {rollouts.texts[row]!r}.")
