"""What the algorithms have in common that learn from scored completions: from a rollout to the loss of a micro-batch.

They differ in where advantages come from: GRPO and RPT compare the completions of a prompt with each other
(`lit_rl.group_relative`), PPO asks a critic (`lit_rl.algorithms.ppo`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.evaluation import Evaluation
from lit_rl.experience import Experience
from lit_rl.kl import kl_estimate
from lit_rl.loading import PolicySpec
from lit_rl.logprobs import TokenScores
from lit_rl.module import PolicyModule
from lit_rl.objective import Objective, top_entropy_mask
from lit_rl.overlong import Overlong
from lit_rl.plan import BatchPlan
from lit_rl.policy import Policy
from lit_rl.reference import Reference
from lit_rl.rewards import Correct, Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.sampler import Sampler
from lit_rl.schedule import Schedule
from lit_rl.stream import MicroBatch
from lit_rl.supervised import supervised_rows
from lit_rl.types import PromptBatch

ROUNDING = 1e-5
"""Nats by which two computations of one log-probability may differ in float32."""


def small_steps(params: Any) -> torch.optim.Optimizer:
    """AdamW without weight decay at a rate of 1e-6, for reinforcement learning on a pretrained model."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0)


class Figures(NamedTuple):
    """What a micro-batch adds to the log of its optimizer step; see `PolicyModule.record`."""

    sums: dict[str, Tensor]
    ratios: dict[str, tuple[Tensor, Tensor]]
    ranges: dict[str, Tensor]


class PolicyGradient(PolicyModule):
    """Sample completions, reward them, and make the better ones more likely.

    Args:
        policy: the model that learns and its tokenizer.
        sampler: how completions are drawn.
        reward: what they earn; default: 1 for a correct answer, else 0.
        optimizer: any torch or bitsandbytes optimizer; default: AdamW at 1e-6.
        schedule: how its learning rate changes.
        evaluation: how held-out problems are answered and judged.
        group_size: completions per prompt.
        epochs: passes over a rollout; 1 with one minibatch is strictly on-policy.
        minibatches: optimizer steps per pass.
        negative_weight: factor on negative advantages; 1 leaves them as they are, less lets bad completions push the policy
            around less, 0 learns from the better ones alone (as RAFT does, arXiv 2304.06767).
        overlong: how completions are treated that ran into the length limit, or came near it.
        objective: what is made of the advantages: surrogate, ratio, clipping, aggregation, KL estimator, corrections.
        kl_coef: weight of the KL to the starting policy, in nats; 0 keeps no reference.
        entropy_coef: weight of an entropy bonus, in nats; 0 leaves it out.
        lm_coef: weight of the language-model loss on the prompts' true completions, averaged over their own tokens; 0 leaves
            it out.
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
        negative_weight: float = 1.0,
        overlong: Overlong = Overlong(),
        objective: Objective = Objective(),
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        lm_coef: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, schedule, evaluation, seed)
        self.sampler, self.reward = sampler or Sampler(), reward or Correct()
        self.group_size, self.epochs, self.minibatches = group_size, epochs, minibatches
        self.negative_weight, self.overlong, self.objective = negative_weight, overlong, objective
        self.kl_coef, self.entropy_coef, self.lm_coef = kl_coef, entropy_coef, lm_coef
        self.reference: Reference | None = None
        self._agreed = False  # whether sampler and learner have been seen to agree
        self._check_options()

    def _check_options(self) -> None:
        self.check_least(group_size=1, epochs=1, minibatches=1, negative_weight=0, kl_coef=0, lm_coef=0)
        if self.sampler.temperature == 0:
            raise ValueError("model.sampler.temperature is 0: all completions of a group would be equal; write 1.0.")
        lora = self.policy_spec.lora
        if lora is not None and lora.dropout:
            raise ValueError(f"model.policy.lora.dropout is {lora.dropout}; sampler and learner must agree: write 0.")
        if self.objective.surrogate == "reinforce" and self.epochs * self.minibatches > 1:
            raise ValueError(
                f"objective.surrogate reinforce goes with one epoch of one minibatch, not {self.epochs} x {self.minibatches}: "
                "it has no ratio for a policy that has moved. With more steps a rollout write clip, cispo or sapo."
            )

    def check_least(self, **least: float) -> None:
        """Refuse options below the least that they may be."""
        for option, value in least.items():
            if not getattr(self, option) >= value:
                raise ValueError(f"model.{option} is {getattr(self, option)}; write {value} or more.")

    # --- what an algorithm gives ---------------------------------------------------------------------------------

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """(N, T) of scored rollouts that have the reference's log-probabilities where there is a reference."""
        raise NotImplementedError

    def rollout_figures(self, rollouts: Rollouts) -> dict[str, float]:
        """What the log is to hold of rollouts with advantages, beside `lit_rl.metrics.rollout_metrics`."""
        return {}

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that leaving them out is exact."""
        return False

    def policies(self) -> list[Policy]:
        copy = self.reference.copy if self.reference else None
        return [self.policy] if copy is None else [self.policy, copy]

    def configure_policy(self) -> None:
        self.policy.disable_dropout()
        if not (self.policy.packs or self.policy.shares_prompts):
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

    def language_prompts(self, prompts: PromptBatch) -> PromptBatch:
        """What ``lm_coef`` learns as text: prompts, and their true completions behind them."""
        return prompts

    def finish_rollouts(self, rollouts: Rollouts) -> None:
        """Everything that a scored rollout needs before the first step on it."""
        if self.reference and self.kl_coef:
            rollouts.ref_logprobs = self.in_pieces(rollouts, self.reference.score)
        if self.objective.correction.method != "none" and self.epochs * self.minibatches > 1:
            rollouts.old_logprobs = self.in_pieces(rollouts, self._own_logprobs)
        mask = rollouts.loss_mask
        advantages = self.advantages(rollouts) * mask
        rollouts.advantages = torch.where(advantages < 0, advantages * self.negative_weight, advantages)
        if self.objective.top_entropy < 1:
            everyone = self.gather(rollouts.entropies[mask])
            rollouts.focus = top_entropy_mask(rollouts.entropies, mask, everyone, self.objective.top_entropy)

    def penalties(self, rollouts: Rollouts) -> Tensor:
        """(N, T) what the KL takes off the reward at each token; zeros where it is a term of the loss, or there is none."""
        if rollouts.ref_logprobs is None or self.objective.kl_in != "reward":
            return torch.zeros_like(rollouts.logprobs)
        kl = kl_estimate(rollouts.logprobs, rollouts.ref_logprobs, self.objective.kl_estimator)
        # Before the first step all of it is rounding, which would make equal rewards unequal.
        rounding = (rollouts.logprobs - rollouts.ref_logprobs).abs() < ROUNDING
        return self.kl_coef * kl.masked_fill(rounding, 0.0) * rollouts.mask

    def _own_logprobs(self, rollouts: Rollouts) -> Tensor:
        with torch.no_grad():
            return self.policy.score(rollouts, details=False).logprobs.float()

    def in_pieces(self, rollouts: Rollouts, score: Callable[[Rollouts], Tensor]) -> Tensor:
        """(N, T), in as many pieces as a pass has micro-batches: what fits in training fits here, and ranks stay in step."""
        prompts, pieces = len(rollouts.prompts), self.minibatches * self.trainer.accumulate_grad_batches
        logprobs = torch.zeros_like(rollouts.logprobs)
        for piece in torch.arange(prompts).chunk(pieces):
            rows = slice(int(piece[0]) * self.group_size, (int(piece[-1]) + 1) * self.group_size)
            with self.forward_context():
                scored = score(rollouts.select(piece.tolist()))
            logprobs[rows, : scored.shape[1]] = scored
        return logprobs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward"] = self.reward.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reward.load_state_dict(checkpoint.get("reward") or {})

    def policy_loss(self, batch: MicroBatch, scores: TokenScores) -> tuple[Tensor, Figures]:
        """A micro-batch's share of the loss of its optimizer step, and of the step's figures.

        Args:
            batch: the micro-batch.
            scores: its tokens under the policy that learns.
        """
        rollouts = batch.rows
        assert isinstance(rollouts, Rollouts)
        log_ratio = (scores.logprobs - rollouts.logprobs).detach()  # (N, T), 0 behind a row's end
        self._check_sampler(batch, log_ratio)
        losses, shares, means, weights = self.objective.token_losses(scores, rollouts, self.kl_coef, self.entropy_coef)
        loss = (losses * batch.weights).sum()
        mask, copies = rollouts.loss_mask, rollouts.copies[:, None]
        sums = {name: (value * mask * copies).sum() / max(batch.num_tokens, 1) for name, value in shares.items()}
        if self.lm_coef:
            rows = supervised_rows(self, self.language_prompts(rollouts.prompts)).to(self.device)
            sums["lm_loss"] = -self.policy.score_batch(rows).logprobs.sum() / batch.num_targets
            loss = loss + self.lm_coef * sums["lm_loss"]
        means["sampling/sampling_logp_difference/mean"] = log_ratio.abs()
        ranges = {}
        if weights is not None:
            means["sampling/importance_sampling_ratio/mean"] = weights
            ranges["sampling/importance_sampling_ratio"] = weights[rollouts.mask]
        # Over the tokens that were scored: groups without signal may have been left out.
        scored = (rollouts.mask * copies).sum()
        ratios = {name: ((value * rollouts.mask * copies).sum(), scored) for name, value in means.items()}
        return loss, Figures(sums, ratios, ranges)

    def _check_sampler(self, batch: MicroBatch, log_ratio: Tensor) -> None:
        """At the first step of the first rollout nothing has been learned yet: the learner must see what the sampler saw."""
        if self._agreed or not batch.fresh:
            return
        assert isinstance(batch.rows, Rollouts)
        difference = float(log_ratio.abs().sum() / batch.rows.lengths.sum())
        exact = self.policy_spec.dtype in ("float32", "float64") and str(self.trainer.precision).startswith(("32", "64"))
        if difference > (1e-3 if exact else 5e-2):
            raise ValueError(
                f"log-probabilities of learner and sampler differ by {difference:.2g} nats a token before any step; every "
                "ratio would be wrong; likely the model has randomness in train mode or does not support its cache: "
                "try model.policy.attention eager, or another model_type."
            )
        self._agreed = True
