"""What the algorithms have in common that compare the completions of one prompt with each other.

GRPO and RPT differ in what a prompt is and what is rewarded; how advantages, references and the loss come from a scored
rollout is the same and stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rl.advantages import AdvantageScale, Baseline, group_advantages, reward_to_go, whiten
from lit_rl.choices import check_choice
from lit_rl.evaluation import Evaluation
from lit_rl.experience import Experience
from lit_rl.kl import kl_estimate
from lit_rl.loading import PolicySpec
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


class GroupRelative(PolicyModule):
    """Sample groups of completions, reward them, and raise the better ones of each group.

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
        baseline: what a reward is compared with: the mean of its ``group``, of the others in it (``leave_one_out``), of the
            group and one reward of 0 (``phantom_zero``), of the whole ``batch``, or nothing (``none``).
        advantage_scale: what advantages are divided by: the std of the ``group``, of the ``batch``, or ``none``.
        negative_weight: factor on negative advantages; 1 is GRPO, less lets wrong answers push the policy around less, 0
            learns from the better half alone (as RAFT does, arXiv 2304.06767).
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
        baseline: Baseline = "group",
        advantage_scale: AdvantageScale = "group",
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
        self.baseline, self.advantage_scale, self.negative_weight = baseline, advantage_scale, negative_weight
        self.overlong, self.objective = overlong, objective
        self.kl_coef, self.entropy_coef, self.lm_coef = kl_coef, entropy_coef, lm_coef
        self.reference: Reference | None = None
        self._agreed = False  # whether sampler and learner have been seen to agree
        self._check_options()

    def _check_options(self) -> None:
        check_choice("model.baseline", self.baseline, Baseline)
        check_choice("model.advantage_scale", self.advantage_scale, AdvantageScale)
        for option, least in {"epochs": 1, "minibatches": 1, "negative_weight": 0, "kl_coef": 0, "lm_coef": 0}.items():
            if not getattr(self, option) >= least:
                raise ValueError(f"model.{option} is {getattr(self, option)}; write {least} or more.")
        if self.group_size < 2:
            raise ValueError(f"model.group_size is {self.group_size}; a group needs at least 2 completions to compare.")
        if self.sampler.temperature == 0:
            raise ValueError("model.sampler.temperature is 0: all completions of a group would be equal; write 1.0.")
        lora = self.policy_spec.lora
        if lora is not None and lora.dropout:
            raise ValueError(f"model.policy.lora.dropout is {lora.dropout}; sampler and learner must agree: write 0.")
        scales = {"batch": ("batch", "none"), "none": ("none",)}.get(self.baseline, ("group", "batch", "none"))
        if self.advantage_scale not in scales:
            raise ValueError(
                f"model.advantage_scale {self.advantage_scale} does not go with baseline {self.baseline}. What goes together: "
                "group, leave_one_out and phantom_zero with group, batch or none; batch with batch or none; none with none."
            )
        if self.objective.surrogate == "reinforce" and self.epochs * self.minibatches > 1:
            raise ValueError(
                f"objective.surrogate reinforce goes with one epoch of one minibatch, not {self.epochs} x {self.minibatches}: "
                "it has no ratio for a policy that has moved. With more steps a rollout write clip, cispo or sapo."
            )

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that leaving them out is exact."""
        kl_term = self.kl_coef != 0 and self.objective.kl_in == "loss"
        return not kl_term and self.entropy_coef == 0 and self.lm_coef == 0

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
            rollouts.ref_logprobs = self._in_pieces(rollouts, self.reference.score)
        if self.objective.correction.method != "none" and self.epochs * self.minibatches > 1:
            rollouts.old_logprobs = self._in_pieces(rollouts, self._own_logprobs)
        mask = rollouts.loss_mask
        advantages = self._advantages(rollouts) * mask
        rollouts.advantages = torch.where(advantages < 0, advantages * self.negative_weight, advantages)
        if self.objective.top_entropy < 1:
            everyone = self.gather(rollouts.entropies[mask])
            rollouts.focus = top_entropy_mask(rollouts.entropies, mask, everyone, self.objective.top_entropy)

    def _advantages(self, rollouts: Rollouts) -> Tensor:
        """(N, T), from the rewards of this rank and, where the baseline or the scale is the batch's, of all ranks."""
        mask, penalties = rollouts.mask, torch.zeros_like(rollouts.logprobs)
        if rollouts.ref_logprobs is not None and self.objective.kl_in == "reward":
            kl = kl_estimate(rollouts.logprobs, rollouts.ref_logprobs, self.objective.kl_estimator)
            # Before the first step all of it is rounding, which would make equal rewards unequal.
            penalties = self.kl_coef * kl.masked_fill((rollouts.logprobs - rollouts.ref_logprobs).abs() < ROUNDING, 0.0)
        if self.baseline == "none":
            return reward_to_go(rollouts.rewards, penalties, mask)
        if self.baseline == "batch":
            returns = reward_to_go(rollouts.rewards, penalties, mask)
            return whiten(returns, rollouts.loss_mask, self.sum_over_ranks, scale=self.advantage_scale == "batch")
        rewards = rollouts.rewards - (penalties * mask).sum(1)
        own = slice(None)
        if self.advantage_scale == "batch":
            own = slice(self.global_rank * len(rewards), (self.global_rank + 1) * len(rewards))
            rewards = self.gather(rewards)
        groups = rewards.view(-1, self.group_size)
        advantages = group_advantages(groups, self.baseline, self.advantage_scale).flatten()
        return advantages[own, None].expand(mask.shape)

    def _own_logprobs(self, rollouts: Rollouts) -> Tensor:
        with torch.no_grad():
            return self.policy.score(rollouts, details=False).logprobs.float()

    def _in_pieces(self, rollouts: Rollouts, score: Callable[[Rollouts], Tensor]) -> Tensor:
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

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        rollouts = batch.rows
        assert isinstance(rollouts, Rollouts)
        scores = self.policy.score(rollouts, entropy_grad=self.entropy_coef != 0, details=False)
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
        # Over the tokens that were scored: groups without signal may have been left out.
        scored = (rollouts.mask * copies).sum()
        means["sampling/sampling_logp_difference/mean"] = log_ratio.abs()
        ranges = {}
        if weights is not None:
            means["sampling/importance_sampling_ratio/mean"] = weights
            ranges["sampling/importance_sampling_ratio"] = weights[rollouts.mask]
        ratios = {name: ((value * rollouts.mask * copies).sum(), scored) for name, value in means.items()}
        self.record(batch, {"loss": loss} | sums, ratios, ranges)
        return loss * batch.scale

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
