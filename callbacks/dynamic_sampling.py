"""Dynamic sampling (DAPO): replaces groups whose rewards are all equal."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_rl.objectives.advantages import equal_groups
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.training.experience import Experience

from .metered import MeteredCallback


class DynamicSampling(MeteredCallback):
    """Replaces groups whose rewards are all equal by groups of fresh prompts (DAPO, arXiv 2503.14476, section 3.2).

    Rewards are compared exactly, continuous ones too. Prompts are drawn batch by batch, on all ranks until the last rank is
    full; surplus groups are not used. A place that ``max_rounds`` could not fill keeps its group, which is left out of the
    loss. So batches keep their size. ``reward``, ``frac_reward_zero_std`` and other metrics describe the final batch; times
    and speed in the log are those of the first draw.

    Meant for baselines within a group: with ``phantom_zero``, ``batch`` or ``none`` equal groups would have taught something.
    Callbacks after this one in the list see the final batch, callbacks before it only the first draw.

    The log counts groups over all ranks: ``sampling/kept`` in the final batch; ``sampling/dropped`` among all draws, split
    into ``sampling/dropped_all_right`` (reward above 0) and ``sampling/dropped_all_wrong`` (0 or below); and
    ``sampling/rounds``, the draws of fresh prompts.

    Args:
        start_step: the optimizer step from which on groups are replaced; 0 from the beginning (RPT: 500).
        max_rounds: most draws of fresh prompts for a batch; 0 draws none: equal groups are only left out.
    """

    def __init__(self, start_step: int = 0, max_rounds: int = 4) -> None:
        super().__init__()
        if start_step < 0 or max_rounds < 0:
            raise ValueError(
                f"DynamicSampling: start_step is {start_step} and max_rounds {max_rounds}; write 0 or more for both."
            )
        self.start_step, self.max_rounds = start_step, max_rounds

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if _experience(trainer).plan.group_size < 2:
            raise ValueError("DynamicSampling compares the completions of a prompt; write model.group_size 2 or more.")

    def on_rollout_end(self, trainer: pl.Trainer, module: pl.LightningModule, rollouts: Rollouts) -> Rollouts:
        if trainer.global_step < self.start_step:
            return rollouts
        runtime, drawn = Runtime(trainer), [rollouts]
        # Every rank goes on while any lacks groups: they share the data, and forwards may be collective.
        while len(drawn) <= self.max_rounds and runtime.sum(_equal(rollouts).sum()) > 0:
            fresh = _experience(trainer).draw(round=len(drawn))
            drawn.append(fresh)
            rollouts = refill(rollouts, fresh)
        # By `in_loss` and not by a shorter batch: every rank must return equally many groups. (N)
        rollouts.in_loss = rollouts.in_loss & ~_equal(rollouts)[rollouts.group]
        self.metrics = self._count(runtime, rollouts, drawn) | {"sampling/rounds": len(drawn) - 1.0}
        return rollouts

    def _count(self, runtime: Runtime, rollouts: Rollouts, drawn: list[Rollouts]) -> dict[str, float]:
        dropped = torch.cat([_equal(each) for each in drawn])
        # Rewards of a dropped group are all equal, so the first speaks for all.
        right = dropped & torch.cat([each.per_group(each.rewards, lambda group: group[:, 0] > 0) for each in drawn])
        counts = {
            "kept": ~_equal(rollouts),
            "dropped": dropped,
            "dropped_all_right": right,
            "dropped_all_wrong": dropped & ~right,
        }
        totals = runtime.sum(torch.stack([groups.sum() for groups in counts.values()])).tolist()
        return {f"sampling/{name}": float(total) for name, total in zip(counts, totals, strict=True)}


def _experience(trainer: pl.Trainer) -> Experience:
    """The stream of rollouts that the run trains on."""
    stream = trainer.train_dataloader
    if not isinstance(stream, Experience):
        raise ValueError(
            f"DynamicSampling needs an algorithm that samples; {type(trainer.lightning_module).__name__} does not: "
            "write GRPO, RPT or PPO, or remove it."
        )
    return stream


def refill(rollouts: Rollouts, fresh: Rollouts) -> Rollouts:
    """Rollouts whose groups of equal rewards are replaced by fresh groups of differing rewards, in order, as far as they reach.

    All other groups keep their places, and so their minibatch.
    """
    groups = rollouts.num_groups
    places = _equal(rollouts).nonzero()[:, 0].tolist()
    useful = (~_equal(fresh)).nonzero()[:, 0].tolist()
    order = list(range(groups))
    for place, number in zip(places, useful, strict=False):
        order[place] = groups + number  # `join` numbers fresh groups after the others
    return Rollouts.join([rollouts, fresh]).select(order)


def _equal(rollouts: Rollouts) -> Tensor:
    """(groups) bool, True if all rewards of the group are equal."""
    return rollouts.per_group(rollouts.rewards, equal_groups)
