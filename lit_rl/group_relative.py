"""What the algorithms have in common that compare the completions of one prompt with each other.

GRPO and RPT differ in what a prompt is and what is rewarded; how advantages come from a scored rollout, and the step on them,
are the same and stand here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rl.advantages import AdvantageScale, Baseline, group_advantages, reward_to_go, whiten
from lit_rl.choices import check_choice
from lit_rl.loading import PolicySpec
from lit_rl.policy_gradient import PolicyGradient
from lit_rl.rewards import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.sampler import Sampler
from lit_rl.stream import MicroBatch


class GroupRelative(PolicyGradient):
    """Sample groups of completions, reward them, and raise the better ones of each group.

    Args:
        policy: the model that learns and its tokenizer.
        sampler: how completions are drawn.
        reward: what they earn; default: 1 for a correct answer, else 0.
        group_size: completions per prompt, at least 2.
        baseline: what a reward is compared with: the mean of its ``group``, of the others in it (``leave_one_out``), of the
            group and one reward of 0 (``phantom_zero``), of the whole ``batch``, or nothing (``none``).
        advantage_scale: what advantages are divided by: the std of the ``group``, of the ``batch``, or ``none``.
    """

    def __init__(
        self,
        policy: PolicySpec,
        sampler: Sampler | None = None,
        reward: Reward | None = None,
        group_size: int = 8,
        baseline: Baseline = "group",
        advantage_scale: AdvantageScale = "group",
        **options: Any,
    ) -> None:
        if group_size < 2:
            raise ValueError(f"model.group_size is {group_size}; a group needs at least 2 completions to compare.")
        super().__init__(policy, sampler, reward, group_size=group_size, **options)
        self.baseline, self.advantage_scale = baseline, advantage_scale
        self._check_comparison()

    def _check_comparison(self) -> None:
        check_choice("model.baseline", self.baseline, Baseline)
        check_choice("model.advantage_scale", self.advantage_scale, AdvantageScale)
        scales = {"batch": ("batch", "none"), "none": ("none",)}.get(self.baseline, ("group", "batch", "none"))
        if self.advantage_scale not in scales:
            raise ValueError(
                f"model.advantage_scale {self.advantage_scale} does not go with baseline {self.baseline}. What goes together: "
                "group, leave_one_out and phantom_zero with group, batch or none; batch with batch or none; none with none."
            )

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that leaving them out is exact."""
        kl_term = self.kl_coef != 0 and self.objective.kl_in == "loss"
        return not kl_term and self.entropy_coef == 0 and self.lm_coef == 0

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """(N, T), from the rewards of this rank and, where the baseline or the scale is the batch's, of all ranks."""
        mask, penalties = rollouts.mask, self.penalties(rollouts)
        if self.baseline == "none":
            return reward_to_go(rollouts.rewards, penalties, mask)
        if self.baseline == "batch":
            returns = reward_to_go(rollouts.rewards, penalties, mask)
            return whiten(returns, rollouts.loss_mask, self.sum_over_ranks, scale=self.advantage_scale == "batch")
        rewards = rollouts.rewards - penalties.sum(1)
        own = slice(None)
        if self.advantage_scale == "batch":
            own = slice(self.global_rank * len(rewards), (self.global_rank + 1) * len(rewards))
            rewards = self.gather(rewards)
        groups = rewards.view(-1, self.group_size)
        advantages = group_advantages(groups, self.baseline, self.advantage_scale).flatten()
        return advantages[own, None].expand(mask.shape)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        rollouts = batch.rows
        assert isinstance(rollouts, Rollouts)
        scores = self.policy.score(rollouts, entropy_grad=self.entropy_coef != 0, details=False)
        loss, figures = self.policy_loss(batch, scores)
        self.record(batch, {"loss": loss} | figures.sums, figures.ratios, figures.ranges)
        return loss * batch.scale
