"""Group relative policy optimization (GRPO, DeepSeekMath, arXiv 2402.03300).

For each prompt G completions are drawn and rewarded; a completion's advantage is its reward against the mean of its
group, so no critic is needed:

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)
    loss = -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef * KL(policy || reference) - entropy_coef * H

per token, rho = p(token) / p_sampler(token), averaged by ``aggregation`` over the whole optimizer step.

Run: ``lit-rl fit --config grpo_arithmetic``
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.advantages import AdvantageScale, group_advantages
from lit_rl.evaluation import Evaluation
from lit_rl.experience import Experience
from lit_rl.loading import PolicySpec
from lit_rl.losses import MAX_LOG_RATIO, Aggregation, clipped_surrogate, k3_kl
from lit_rl.module import PolicyModule
from lit_rl.plan import BatchPlan
from lit_rl.policy import Policy
from lit_rl.reference import Reference
from lit_rl.rewards import Correct, Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.sampler import Sampler
from lit_rl.schedule import Schedule
from lit_rl.stream import MicroBatch


def small_steps(params: Any) -> torch.optim.Optimizer:
    """AdamW without weight decay at a rate of 1e-6, for reinforcement learning on a pretrained model."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0)


class GRPO(PolicyModule):
    """Group relative policy optimization.

    Args:
        policy: the model that learns and its tokenizer.
        sampler: how completions are drawn.
        reward: what they earn; default: 1 for a correct answer, else 0.
        optimizer: any torch or bitsandbytes optimizer; default: AdamW at 1e-6.
        schedule: how its learning rate changes.
        evaluation: how held-out problems are answered and judged.
        group_size: completions per prompt, at least 2.
        epochs: passes over a rollout; 1 with one minibatch is strictly on-policy.
        minibatches: optimizer steps per pass.
        advantage_scale: what advantages are divided by: the std of the ``group``, of the ``batch``, or ``none``.
        negative_weight: factor on negative advantages; 1 is GRPO, less lets wrong answers push the policy around less, 0
            learns from the better half alone (as RAFT does, arXiv 2304.06767).
        clip_low: how far a token's ratio may fall below 1 before its gradient stops.
        clip_high: how far it may rise above 1 before its gradient stops.
        aggregation: average over all ``token``s, over each ``sequence`` and then over sequences, or divide by a
            ``constant`` length, the sampler's limit.
        kl_coef: weight of the KL to the starting policy, k3 estimator, in nats; 0 keeps no reference.
        entropy_coef: weight of an entropy bonus, in nats; 0 leaves it out.
        seed: of the weights of a model from scratch and of every draw; linked to ``seed_everything`` on the command line.
    """

    def __init__(
        self,
        policy: PolicySpec,
        sampler: Sampler | None = None,
        reward: Reward | None = None,
        optimizer: OptimizerCallable = small_steps,
        schedule: Schedule | None = None,
        evaluation: Evaluation | None = None,
        group_size: int = 8,
        epochs: int = 1,
        minibatches: int = 1,
        advantage_scale: AdvantageScale = "group",
        negative_weight: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        aggregation: Aggregation = "token",
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, schedule, evaluation, seed)
        self.sampler, self.reward = sampler or Sampler(), reward or Correct()
        self.group_size, self.epochs, self.minibatches = group_size, epochs, minibatches
        self.advantage_scale, self.aggregation = advantage_scale, aggregation
        self.negative_weight = negative_weight
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.reference: Reference | None = None
        self._agreed = False  # whether sampler and learner have been seen to agree
        if group_size < 2:
            raise ValueError(f"model.group_size is {group_size}; a group needs at least 2 completions to compare.")
        if self.sampler.temperature == 0:
            raise ValueError("model.sampler.temperature is 0: all completions of a group would be equal; write 1.0.")
        if policy.lora is not None and policy.lora.dropout:
            raise ValueError(f"model.policy.lora.dropout is {policy.lora.dropout}; sampler and learner must agree: write 0.")

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that leaving them out is exact."""
        return self.kl_coef == 0 and self.entropy_coef == 0

    def policies(self) -> list[Policy]:
        copy = self.reference.copy if self.reference else None
        return [self.policy] if copy is None else [self.policy, copy]

    def configure_policy(self) -> None:
        self.policy.disable_dropout()
        if not self.policy.shares_prompts:
            rank_zero_info("Prompts are computed once per completion: this model's cache carries no gradient as configured.")
        if self.kl_coef:
            self.reference = Reference(self.policy)

    def on_fit_start(self) -> None:
        if self.reference and self.reference.copy is not None and self.device_mesh is None:
            self.trainer.precision_plugin.convert_module(self.reference.copy.to(self.device))

    def batch_plan(self, prompts: int) -> BatchPlan:
        trainer = self.trainer
        return BatchPlan(
            prompts, trainer.world_size, self.group_size, self.epochs, self.minibatches, trainer.accumulate_grad_batches
        )

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> Experience:
        return Experience(self, loader, plan)

    def finish_rollouts(self, rollouts: Rollouts) -> None:
        """Advantages from rewards, and the reference's log-probabilities where the loss needs them."""
        rewards = rollouts.rewards.view(-1, self.group_size)
        if self.advantage_scale == "batch":
            everyone = self.gather(rollouts.rewards).view(-1, self.group_size)
            own = slice(self.global_rank * len(rewards), (self.global_rank + 1) * len(rewards))
            rollouts.advantages = group_advantages(everyone, "batch")[own].flatten()
        else:
            rollouts.advantages = group_advantages(rewards, self.advantage_scale).flatten()
        rollouts.advantages = torch.where(
            rollouts.advantages < 0, rollouts.advantages * self.negative_weight, rollouts.advantages
        )
        if self.reference and self.kl_coef:
            rollouts.ref_logprobs = self._reference_logprobs(rollouts)

    def _reference_logprobs(self, rollouts: Rollouts) -> Tensor:
        """(N, T), in as many pieces as a pass has micro-batches: what fits in training fits here, and ranks stay in step."""
        assert self.reference is not None
        prompts, pieces = len(rollouts.prompts), self.minibatches * self.trainer.accumulate_grad_batches
        logprobs = torch.zeros_like(rollouts.logprobs)
        for piece in torch.arange(prompts).chunk(pieces):
            rows = slice(int(piece[0]) * self.group_size, (int(piece[-1]) + 1) * self.group_size)
            with self.forward_context():
                scored = self.reference.score(rollouts.select(piece.tolist()))
            logprobs[rows, : scored.shape[1]] = scored
        return logprobs

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        rollouts = batch.rows
        assert isinstance(rollouts, Rollouts)
        scores = self.policy.score(rollouts, entropy_grad=self.entropy_coef != 0, details=False)
        log_ratio = scores.logprobs - rollouts.logprobs  # (N, T), 0 behind a row's end
        self._check_sampler(batch, log_ratio)
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        advantages = rollouts.advantages[:, None]
        losses = clipped_surrogate(ratio, advantages, self.clip_low, self.clip_high)
        shares = {
            "clip_ratio/low_mean": (ratio < 1 - self.clip_low) & (advantages < 0),
            "clip_ratio/high_mean": (ratio > 1 + self.clip_high) & (advantages > 0),
        }
        if rollouts.ref_logprobs is not None:
            kl = k3_kl(scores.logprobs, rollouts.ref_logprobs)
            losses = losses + self.kl_coef * kl
            shares["kl"] = kl
        if self.entropy_coef:
            losses = losses - self.entropy_coef * scores.entropies
        loss = (losses * batch.weights).sum()
        copies = rollouts.copies[:, None] / batch.num_tokens
        sums = {name: (value.detach() * copies).sum() for name, value in shares.items()}
        # Over the rows that were scored: those without signal may have been left out.
        drift = {"sampling/sampling_logp_difference/mean": (log_ratio.detach().abs().sum(), rollouts.lengths.sum())}
        self.record(batch, {"loss": loss} | sums, drift)
        return loss * batch.scale

    def _check_sampler(self, batch: MicroBatch, log_ratio: Tensor) -> None:
        """At the first step of the first rollout nothing has been learned yet: the learner must see what the sampler saw."""
        if self._agreed or not batch.fresh:
            return
        assert isinstance(batch.rows, Rollouts)
        difference = float(log_ratio.detach().abs().sum() / batch.rows.lengths.sum())
        exact = self.policy_spec.dtype in ("float32", "float64") and str(self.trainer.precision).startswith(("32", "64"))
        if difference > (1e-3 if exact else 5e-2):
            raise ValueError(
                f"log-probabilities of learner and sampler differ by {difference:.2g} nats a token before any step; every "
                "ratio would be wrong; likely the model has randomness in train mode or does not support its cache: "
                "try model.policy.attention eager, or another model_type."
            )
        self._agreed = True
