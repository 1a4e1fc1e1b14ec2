"""Experience: training data of reinforcement learning, made while it is consumed.

A batch of prompts becomes a scored rollout with advantages, whose minibatches are yielded as micro-batches, ``epochs`` times.
So sampling is data loading to Lightning, and every Trainer flag and strategy keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.objectives.aggregation import Aggregation, counted_sequences, token_weights
from lit_rl.rollouts import Rollouts
from lit_rl.training.batch_plan import BatchPlan, balanced_parts
from lit_rl.training.collector import Collector
from lit_rl.training.step_metrics import rollout_metrics
from lit_rl.training.stream import MicroBatch, TrainingStream


class Experience(TrainingStream[Rollouts]):
    """Stream of micro-batches of rollouts.

    Args:
        loader: batches of this rank's prompts.
        plan: sizes of a batch.
        collector: prompts -> scored rollouts.
        finish: fills in advantages and all other fields that the loss reads; returns metrics to log with the rollout.
        unsharded: holds whole weights on every rank; entered once for all forward passes of a rollout.
        aggregation: aggregation of token losses into the loss of an optimizer step.
        skips_zero_advantages: whether groups without advantages have no gradient; asked at each step, as coefficients change.
    """

    def __init__(
        self,
        loader: DataLoader,
        plan: BatchPlan,
        collector: Collector,
        finish: Callable[[Rollouts], dict[str, float]],
        unsharded: Callable[[], AbstractContextManager[None]],
        aggregation: Aggregation,
        skips_zero_advantages: Callable[[], bool],
    ) -> None:
        super().__init__(loader, plan, collector.actor.runtime)
        self.collector, self._finish, self._unsharded = collector, finish, unsharded
        self._aggregation: Aggregation = aggregation
        self._skips_zero_advantages = skips_zero_advantages
        self.rollouts: Rollouts  # current rollout
        self.metrics: dict[str, float] = {}  # metrics of the current rollout
        self.stopped = False  # whether the current rollout gets no further optimizer steps

    def begin(self) -> None:
        with self.breakable(), self._unsharded():
            rollouts = self.collector.collect(self.prompts.next())
            # Before `_finish`, whose forward passes would be in vain.
            self._check_size(rollouts.num_groups)
            finished = self._finish(rollouts)
        # Only now: a checkpoint must not take a rollout for the current one, or count it, before it is whole.
        self.rollouts, self.stopped = rollouts, False
        self.collector.number += 1
        known = rollout_metrics(rollouts, self.runtime.gather, self.collector.sampler.arm_names)
        self.metrics = known | finished | self.collector.metrics

    def size(self) -> tuple[int, int]:
        # Groups and not prompts: a question that is asked in several styles is one sample.
        return self.rollouts.num_groups, int(self.rollouts.prompts.mask.sum() + self.rollouts.lengths.sum())

    def draw(self, round: int) -> Rollouts:
        """Scored completions of this rank's next batch of prompts, for a callback that needs more in `on_rollout_end`.

        All ranks must draw together, or their positions in the data would differ.

        Args:
            round: number of the draw in the rollout, from 1; a prompt that comes again gets other completions.
        """
        return self.collector.draw(self.prompts.next(), round)

    def _check_size(self, groups: int) -> None:
        """Refuse a number of groups, as callbacks left it, that does not divide into the plan's steps."""
        steps, least = self.plan.minibatches, self.plan.minibatches * self.plan.accumulate
        if groups % steps or groups < least:
            raise ValueError(
                f"callbacks left {groups} groups on this rank, which do not divide into {steps} minibatch(es) of at least "
                f"{self.plan.accumulate} each; leave a multiple of {steps}, at least {least}."
            )

    # --- cutting -------------------------------------------------------------------------------------------------

    def micro_batches(self) -> Iterator[MicroBatch[Rollouts]]:
        rollouts = self.rollouts
        # Groups stay whole and in order: minibatches are the same at every call, as resuming needs.
        size = rollouts.num_groups // self.plan.minibatches
        steps = [list(range(first, first + size)) for first in range(0, rollouts.num_groups, size)]
        # One collective for all steps of the rollout.
        counts = self._count(rollouts, steps)
        for epoch in range(self.plan.epochs):
            for number, groups in enumerate(steps):
                # Between steps only: an accumulation window must not mix two rollouts, whose counts differ.
                if self.stopped:
                    return
                on_policy = self.collector.on_policy and epoch == number == 0
                yield from self._cut(rollouts, groups, counts[number], on_policy)

    def _cut(self, rollouts: Rollouts, groups: list[int], counts: list[int], on_policy: bool) -> Iterator[MicroBatch[Rollouts]]:
        """Micro-batches of one optimizer step: whole groups, with nearly equal numbers of tokens."""
        num_tokens, num_sequences, num_targets = counts
        useful = self._useful(rollouts, groups)
        parts = balanced_parts(self._tokens(rollouts)[useful].tolist(), self.plan.accumulate)
        for number, part in enumerate(parts):
            rows = rollouts.select([useful[item] for item in part])
            # Merging compares tensors of rows, and a support is ragged: rows that look equal could differ in it.
            if rows.support is None:
                rows = rows.merge_duplicates()
            limit = self.collector.sampler.max_new_tokens
            weights = token_weights(rows.loss_mask, self._aggregation, num_tokens, num_sequences, limit)
            # Counts are of all rows, so a merged row weighs as much as the rows that it stands for.
            weights = weights * rows.multiplicity[:, None]
            first, last = number == 0, number == len(parts) - 1
            metrics = self.metrics if first else None
            yield MicroBatch(rows, weights, num_tokens, self.scale, first, last, on_policy, metrics, num_targets)

    def _useful(self, rollouts: Rollouts, groups: list[int]) -> list[int]:
        """Groups that have a gradient, and others until there is one for each micro-batch, since all ranks run equally many."""
        if not self._skips_zero_advantages():
            return groups
        signal = _total(rollouts.group, (rollouts.advantages != 0).any(1)).tolist()  # rows with signal
        useful = [group for group in groups if signal[group]]
        fill = [group for group in groups if not signal[group]]
        return useful + fill[: max(0, self.plan.accumulate - len(useful))]

    def _tokens(self, rollouts: Rollouts) -> Tensor:
        """(groups) cost of each group in tokens: its prompts once, and its completions."""
        prompts = _total(_group_of_prompts(rollouts), rollouts.prompts.mask.sum(1))
        return prompts + _total(rollouts.group, rollouts.lengths)

    def _count(self, rollouts: Rollouts, steps: list[list[int]]) -> list[list[int]]:
        """For each minibatch over all ranks: tokens and sequences in the loss, and tokens of true completions."""
        mask = rollouts.loss_mask
        rows = torch.stack([mask.sum(1), counted_sequences(mask, self._aggregation)], dim=1)  # (N, 2)
        # (P, 1): a true completion counts once for its prompt, however many rows the prompt has.
        targets = mask.new_tensor([[len(completion)] for completion in rollouts.prompts.completions], dtype=torch.long)
        by_group = [_total(rollouts.group, rows), _total(_group_of_prompts(rollouts), targets)]
        columns = torch.cat(by_group, dim=1)  # (groups, 3)
        return self.runtime.sum(torch.stack([columns[groups].sum(0) for groups in steps])).tolist()

    # --- resuming ------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        return super().unfinished and not self.stopped

    def state_dict(self) -> dict[str, Any]:
        """Position, number of rollouts, and the current rollout if it is unfinished."""
        state: dict[str, Any] = {"number": self.collector.number, "stopped": self.stopped, "rollouts": None, "metrics": {}}
        if self.unfinished:
            # On the CPU: in every process a GPU tensor would be unpickled on its sender's device.
            state |= {"rollouts": self.rollouts.to("cpu").state_dict(), "metrics": self.metrics}
        return super().state_dict() | state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.collector.number, self.stopped, self.metrics = state["number"], state["stopped"], state["metrics"]
        if state["rollouts"] is not None:
            self.rollouts = Rollouts.from_state(state["rollouts"]).to(self.runtime.device)


def _total(numbers: Tensor, values: Tensor) -> Tensor:
    """(groups, ...) sums of integer values (n, ...) over equal group numbers (n)."""
    # `index_add` on a GPU adds in no fixed order, which integers do not notice.
    values = values.long()
    return values.new_zeros(int(numbers.max()) + 1, *values.shape[1:]).index_add(0, numbers, values)


def _group_of_prompts(rollouts: Rollouts) -> Tensor:
    """(P) group of each prompt; the rows of a prompt are in one group."""
    # Rows of one prompt write to one place, but all write the same number.
    return torch.zeros_like(rollouts.prompts.mask[:, 0], dtype=torch.long).index_copy(0, rollouts.prompt, rollouts.group)
