"""Group relative policy optimization (GRPO, DeepSeekMath, arXiv 2402.03300) and its family.

For each prompt G completions are drawn and rewarded. The advantage of a completion compares its reward with the rewards of its
group, so GRPO needs no critic:

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)
    loss = -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef * KL(policy || reference) - entropy_coef * H

per token, with the importance ratio rho = p(token) / p_sampler(token), averaged by ``aggregation`` over the whole optimizer
step. Other baselines, surrogates, ratios and KL terms are options. ``configs/objective/`` holds the published algorithms as
values of these options (Dr. GRPO, DAPO, GSPO, CISPO, SAPO, RLOO, REINFORCE, REINFORCE++); `docs/objectives.md` explains them.

Run: ``lit-rl fit --config grpo_arithmetic``, or with ``--config objective/dapo`` after it
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rl.algorithms.policy_gradient import PolicyGradient
from lit_rl.models.spec import PolicySpec
from lit_rl.objectives.advantages import AdvantageScale, Baseline, check_comparison, relative_advantages
from lit_rl.rollouts import Rollouts
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch


class GRPO(PolicyGradient):
    """Group relative policy optimization: compares the completions of a prompt and makes the better ones more likely.

    Args:
        policy: the model that learns and its tokenizer.
        group_size: completions per prompt, at least 2.
        baseline: baseline of a reward: mean of its ``group``, of the others in it (``leave_one_out``), of the group and one
            reward of 0 (``phantom_zero``), of the whole ``batch``, or ``none``.
        advantage_scale: divisor of advantages: std of the ``group``, of the ``batch``, or ``none``.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        group_size: int = 8,
        baseline: Baseline = "group",
        advantage_scale: AdvantageScale = "group",
        **options: Any,
    ) -> None:
        if group_size < 2:
            raise ValueError(f"model.group_size is {group_size}; a group needs at least 2 completions to compare.")
        super().__init__(policy, group_size=group_size, **options)
        check_comparison(baseline, advantage_scale)
        self.baseline: Baseline = baseline
        self.advantage_scale: AdvantageScale = advantage_scale

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Only to learn: rollouts may be recorded for another algorithm.
        if stage == "fit" and self.reward.one_per_group and self.baseline in ("group", "leave_one_out"):
            raise ValueError(
                f"model.reward {self.reward.name} pays all completions of a question alike, and model.baseline {self.baseline} "
                "compares them with each other, so that nothing would be learned; write reward.per response, or baseline batch."
            )

    def skips_zero_advantages(self) -> bool:
        # A KL in the reward is part of the advantages, so with it zero advantages have no gradient either.
        kl_term = self.kl_coef != 0 and self.objective.kl_in == "loss"
        return not kl_term and self.entropy_coef == self.lm_coef == self.policy.router.coef == 0

    def advantages(self, rollouts: Rollouts) -> Tensor:
        runtime, penalties = self.runtime, self.penalties(rollouts)
        return relative_advantages(rollouts, penalties, self.baseline, self.advantage_scale, runtime.sum, runtime.gather)

    def batch_loss(self, batch: MicroBatch[Rollouts]) -> BatchLoss:
        scores = self.policy.score(batch.rows, entropy_grad=self.entropy_coef != 0, details=False)
        return self.policy_loss(batch, scores)
