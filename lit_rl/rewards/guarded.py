"""Guarded: a reward that may fail or take too long, without ending the run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rl.options import check_choice
from lit_rl.rewards.base import Reward, RewardError, checked_parts, units
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.types import Sample

OnError = Literal["stop", "skip"]


class Guarded(Reward):
    """Another reward, with a time limit, and with a choice of what its errors do.

    With ``skip`` a completion that could not be scored is left out: it has no gradient, and the others of its group are
    compared without it; ``reward/errors`` in the log counts such completions of a rollout. Errors are exceptions, scores that
    are not finite, and calls past the time limit. A call that fails is repeated for each completion, or for each group if the
    reward compares completions (`Reward.alone` is false), so that the others keep their scores. The log has the reward as one
    part.

    A call with a time limit runs in a thread: a reward may hold models, files or connections, which no other process could be
    given. A thread cannot be ended: after the limit its result is dropped, and the run goes on beside it.

    Args:
        reward: the reward.
        on_error: ``skip`` leaves out completions that could not be scored; ``stop`` ends the run, naming the reward.
        time_limit: seconds that one call may take; 0 sets no limit.
    """

    def __init__(self, reward: Reward, on_error: OnError = "skip", time_limit: float = 0.0) -> None:
        check_choice("reward.on_error", on_error, OnError)
        if not time_limit >= 0:
            raise ValueError(f"reward.time_limit is {time_limit}; write seconds above 0, or 0 for no limit.")
        self.reward, self.on_error, self.time_limit = reward, on_error, time_limit

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def alone(self) -> bool:  # type: ignore[override]
        return self.reward.alone

    @property
    def skips_errors(self) -> bool:  # type: ignore[override]
        return self.on_error == "skip"

    @property
    def asks_policy(self) -> bool:
        return self.reward.asks_policy

    def example(self, sample: Sample) -> str:
        return self.reward.example(sample)

    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        # Not guarded: its forward passes may be collective, and a rank that left them out would stop all others.
        self.reward.prepare(actor, rollouts)

    def score(self, rollouts: Rollouts) -> Tensor:
        try:
            return self._call(rollouts)
        except RewardError:
            if self.on_error == "stop":
                raise
        scores = torch.full((len(rollouts),), torch.nan)
        for rows, unit in units(rollouts, self.reward.alone):
            try:
                scores[rows] = self._call(unit).float().cpu()
            except RewardError:
                continue
        return scores

    def _call(self, rollouts: Rollouts) -> Tensor:
        """(N) finite scores.

        Raises:
            RewardError: if the reward fails, or takes longer than the limit.
        """
        finished, result = run_within(self.time_limit, lambda: self.reward.total(checked_parts(self.reward, rollouts)))
        if not finished:
            numbers = sorted({sample.number for sample in rollouts.samples})
            raise RewardError(f"reward {self.name}: no score within time_limit {self.time_limit} s for samples {numbers[:8]}.")
        return result

    def state_dict(self) -> dict[str, Any]:
        return self.reward.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reward.load_state_dict(state)


def run_within(seconds: float, call: Callable[[], Any]) -> tuple[bool, Any]:
    """Run a function with a time limit; exceptions of the function are raised here.

    Args:
        seconds: time limit; 0 sets none.
        call: the function.

    Returns:
        Whether the function ended in time, and its result.
    """
    if not seconds:
        return True, call()
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            with torch.no_grad():  # a setting of the thread
                results.put((call(), None))
        except BaseException as error:  # raised in the caller's thread below
            results.put((None, error))

    # A daemon: a call that never returns must not keep the process alive at the end of the run.
    threading.Thread(target=work, name="reward", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        return False, None
    if error is not None:
        raise error
    return True, result
