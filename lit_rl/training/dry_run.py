"""Dry run: rewards and judges on a few samples of the data before the first step, without a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_rl.rewards.base import AnswerReward, Reward, score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample

SAMPLES = 4
"""Samples of a dry run, from the beginning of the data to its end."""


def check_reward(reward: Reward, data: Sequence[Sample]) -> None:
    """Score right answers of a few samples, in the form that the reward reads; warn if none earns anything.

    A reward that asks the policy is not run.

    Raises:
        ValueError: if the reward fails, or cannot read the data's references.
    """
    samples = some_of(data)
    if reward.asks_policy or not samples:
        return
    # Twice, since rewards may compare the completions of a prompt.
    rollouts = written_rollouts(samples, [reward.example(sample) for sample in samples for _ in range(2)])
    state = copy.deepcopy(reward.state_dict())
    score_rollouts(reward, rollouts)
    reward.load_state_dict(state)  # the run begins with the state that it would have begun with
    if not bool(rollouts.scored.all()):  # skipped as an error, but no completion of a policy is to blame
        number = rollouts.samples[int((~rollouts.scored).nonzero()[0])].number
        raise ValueError(
            f"reward {reward.name} fails on a right answer to sample {number}, before the first step; "
            "write on_error stop to see why."
        )
    if bool((rollouts.rewards <= 0).all()):
        rank_zero_warn(
            f"reward {reward.name} pays nothing for right answers of the data, such as {rollouts.texts[0][:60]!r} to sample "
            f"{samples[0].number}; see that it reads the form in which the data write their answers."
        )


def check_judge(judge: AnswerReward[Any], data: Sequence[Sample]) -> None:
    """Let the judge of an evaluation read the references of a few held-out problems.

    Raises:
        ValueError: if the judge cannot read them.
    """
    samples = some_of(data)
    if not samples:
        return
    try:
        judge.score(written_rollouts(samples, [judge.example(sample) for sample in samples]))
    except ValueError as error:
        raise ValueError(
            f"model.evaluation judges by {type(judge).__name__}, which cannot read the data: {error} Or give the evaluation a "
            "judge of your answers, such as correct MathAnswer or FinalNumber; max_new_tokens 0 generates no answers."
        ) from error


def some_of(data: Sequence[Sample]) -> list[Sample]:
    """A few samples, evenly spread."""
    count = min(SAMPLES, len(data))
    return [data[place * len(data) // count] for place in range(count)]


def written_rollouts(samples: list[Sample], texts: list[str]) -> Rollouts:
    """Rollouts of texts that no policy has sampled, equally many for each sample in turn; a text counts as one token."""
    rows = len(texts)
    return Rollouts(
        PromptBatch.pad([[0]] * len(samples), [[] for _ in samples], samples, 0),
        texts=texts,
        completion_ids=torch.zeros(rows, 1, dtype=torch.long),
        lengths=torch.ones(rows, dtype=torch.long),
        truncated=torch.zeros(rows, dtype=torch.bool),
        logprobs=torch.zeros(rows, 1),
        entropies=torch.zeros(rows, 1),
        temperature=torch.ones(rows),
    )
