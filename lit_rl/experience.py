"""Experience: the training data of a reinforcement-learning module, made while it is being consumed.

A batch of prompts is sampled, scored, shown to the callbacks and given advantages; then its minibatches are yielded, one
micro-batch after another, ``epochs`` times over. Generation thereby is data loading to Lightning, and every Trainer
flag and strategy keeps its meaning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from lit_rl.aggregation import counted_sequences, token_weights
from lit_rl.hooks import RolloutCallback
from lit_rl.metrics import rollout_metrics
from lit_rl.plan import BatchPlan, balanced_parts
from lit_rl.rewards.base import score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.sampler import SampleKey
from lit_rl.stream import MicroBatch, TrainingStream
from lit_rl.types import PromptBatch

if TYPE_CHECKING:
    from lit_rl.policy_gradient import PolicyGradient


class Experience(TrainingStream):
    """Rollouts of the module's policy as a stream of micro-batches.

    Args:
        module: samples, scores and gives advantages.
        loader: batches of this rank's prompts.
        plan: how rollouts are cut.
    """

    def __init__(self, module: PolicyGradient, loader: DataLoader, plan: BatchPlan) -> None:
        super().__init__(module, loader, plan)
        self.module: PolicyGradient = module
        self.rollouts: Rollouts | None = None
        self.metrics: dict[str, float] = {}
        self.number = 0  # of rollouts begun in this run; sampling is keyed by it
        self.stopped = False  # whether no more steps are to be taken on the current rollout

    def begin(self) -> None:
        with self.module.gathered():  # sharded weights, once for all forwards of the rollout
            self._roll_out()

    def _roll_out(self) -> None:
        trainer, module = self.module.trainer, self.module
        start = time.perf_counter()
        rollouts = self.sample(self._next_prompts())
        tokens = int(rollouts.lengths.sum()) * self.plan.ranks
        sampled = time.perf_counter()
        self.score(rollouts)
        scored = time.perf_counter()
        for callback in self._callbacks():
            rollouts = callback.on_rollout_end(trainer, module, rollouts)
        self._check_size(len(rollouts.prompts))
        module.finish_rollouts(rollouts)
        self.rollouts, self.stopped = rollouts, False
        self.number += 1
        self.metrics = (
            rollout_metrics(rollouts, module.gather)
            | module.rollout_figures(rollouts)
            | {
                "time/rollout": sampled - start,
                "time/reward": scored - sampled,
                "perf/rollout_tokens_per_second": tokens / (sampled - start),
            }
        )

    def _next_prompts(self) -> PromptBatch:
        """This rank's next batch, as the policy is shown it."""
        module = self.module
        prompts = module.render(self.prompts.next().to(module.device))
        for callback in self._callbacks():
            prompts = callback.on_rollout_start(module.trainer, module, prompts)
        return prompts

    def draw(self, round: int) -> Rollouts:
        """Scored completions of this rank's next batch of prompts, for a callback that needs more in `on_rollout_end`.

        All ranks draw together: else they would come to different places in the data.

        Args:
            round: counts a rollout's draws from 1 on, so that a prompt that comes again gets other completions.
        """
        rollouts = self.sample(self._next_prompts(), round)
        self.score(rollouts)
        return rollouts

    def _check_size(self, prompts: int) -> None:
        """What callbacks leave must still divide into the plan's steps."""
        steps, least = self.plan.minibatches, self.plan.minibatches * self.plan.accumulate
        if prompts % steps or prompts < least:
            raise ValueError(
                f"callbacks left {prompts} prompts on this rank, which do not divide into {steps} minibatch(es) of at least "
                f"{self.plan.accumulate} each; leave a multiple of {steps}, at least {least}."
            )

    def sample(self, prompts: PromptBatch, round: int = 0) -> Rollouts:
        """Completions of the prompts; ``round`` tells a refill's draws from those of the rollout that it fills up."""
        module = self.module
        key = SampleKey(module.seed, self.number, round)
        with module.forward_context():
            return module.sampler.sample(module.policy, prompts, self.plan.group_size, key)

    def score(self, rollouts: Rollouts) -> None:
        """Decode the completions and let the reward judge them."""
        rollouts.texts = self.module.decode(rollouts)
        self.module.reward.prepare(self.module, rollouts)
        score_rollouts(self.module.reward, rollouts)
        self.module.overlong.apply(rollouts, self.module.sampler.max_new_tokens)

    def micro_batches(self) -> Iterator[MicroBatch]:
        rollouts = self.rollouts
        assert rollouts is not None
        size = len(rollouts.prompts) // self.plan.minibatches
        steps = [list(range(first, first + size)) for first in range(0, len(rollouts.prompts), size)]
        counts = self._count(rollouts, steps)
        for epoch in range(self.plan.epochs):
            for number, prompts in enumerate(steps):
                if self.stopped:
                    return
                yield from self._cut(rollouts, prompts, counts[number], fresh=epoch == number == 0)

    def _cut(self, rollouts: Rollouts, prompts: list[int], counts: list[int], fresh: bool) -> Iterator[MicroBatch]:
        """The micro-batches of one optimizer step: whole groups, balanced by tokens."""
        plan, module = self.plan, self.module
        num_tokens, num_sequences, num_targets = counts
        useful = self._useful(rollouts, prompts)
        tokens = rollouts.prompts.mask.sum(1) + rollouts.lengths.view(-1, plan.group_size).sum(1)
        parts = balanced_parts(tokens[useful].tolist(), plan.accumulate)
        for number, part in enumerate(parts):
            rows = rollouts.select([useful[item] for item in part])
            if rows.support is None:
                rows = rows.merge_duplicates()
            aggregation, limit = module.objective.aggregation, module.sampler.max_new_tokens
            weights = token_weights(rows.loss_mask, aggregation, num_tokens, num_sequences, limit) * rows.copies[:, None]
            first, last = number == 0, number == len(parts) - 1
            metrics = self.metrics if first else None
            yield MicroBatch(rows, weights, num_tokens, self.scale, first, last, fresh, metrics, num_targets)

    def _useful(self, rollouts: Rollouts, prompts: list[int]) -> list[int]:
        """The prompts whose rows have a gradient; at least one for each micro-batch, since every rank runs them all."""
        if not self.module.skips_zero_advantages:
            return prompts
        signal = (rollouts.advantages != 0).any(1).view(-1, self.plan.group_size).any(1).tolist()
        useful = [prompt for prompt in prompts if signal[prompt]]
        fill = [prompt for prompt in prompts if not signal[prompt]]
        return useful + fill[: max(0, self.plan.accumulate - len(useful))]

    def _count(self, rollouts: Rollouts, steps: list[list[int]]) -> list[list[int]]:
        """Of each minibatch over all ranks: tokens and sequences that count, and tokens of true completions."""
        mask = rollouts.loss_mask
        rows = torch.stack([mask.sum(1), counted_sequences(mask, self.module.objective.aggregation)], dim=1)
        per_prompt = rows.view(-1, self.plan.group_size, 2).sum(1)
        targets = mask.new_tensor([[len(completion)] for completion in rollouts.prompts.completions], dtype=torch.long)
        columns = torch.cat([per_prompt, targets], dim=1)  # (P, 3)
        return self.module.sum_over_ranks(torch.stack([columns[prompts].sum(0) for prompts in steps])).tolist()

    def _callbacks(self) -> list[RolloutCallback]:
        return [callback for callback in self.module.trainer.callbacks if isinstance(callback, RolloutCallback)]  # type: ignore[attr-defined]

    @property
    def unfinished(self) -> bool:
        return super().unfinished and not self.stopped

    def state_dict(self) -> dict[str, Any]:
        """Beside the position: the rollout's number, and the rollout itself where it is unfinished."""
        state: dict[str, Any] = {"number": self.number, "stopped": self.stopped, "rollouts": None, "metrics": {}}
        if self.unfinished and self.rollouts is not None:
            state |= {"rollouts": self.rollouts.to("cpu").state_dict(), "metrics": self.metrics}
        return super().state_dict() | state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.number, self.stopped, self.metrics = state["number"], state["stopped"], state["metrics"]
        saved = state["rollouts"]
        self.rollouts = None if saved is None else Rollouts.from_state(saved).to(self.module.device)
