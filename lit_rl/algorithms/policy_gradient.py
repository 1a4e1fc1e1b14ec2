"""Policy gradient: the steps from a scored rollout to the loss of a micro-batch that GRPO, RPT and PPO share.

They differ in advantages: GRPO and RPT compare the completions of a group with each other, PPO asks a critic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from lit_rl.algorithms.module import PolicyModule
from lit_rl.algorithms.start import check_sampling
from lit_rl.datamodules.base import PromptDataModule
from lit_rl.datamodules.recorded import Recorded
from lit_rl.models.policy import Policy
from lit_rl.models.reference import Reference
from lit_rl.models.spec import PolicySpec
from lit_rl.objectives.kl import kl_penalties
from lit_rl.objectives.objective import Objective, top_entropy_mask
from lit_rl.objectives.overlong import Overlong
from lit_rl.options import check_least
from lit_rl.rewards import ArithmeticAnswer, Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.sampler import Sampler
from lit_rl.training.agreement import check_agreement
from lit_rl.training.batch_plan import BatchPlan
from lit_rl.training.collector import Collector
from lit_rl.training.dry_run import check_reward, some_of
from lit_rl.training.experience import Experience
from lit_rl.training.recorded import RecordedCollector, check_replay
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch
from lit_rl.training.supervised import supervised_rows
from lit_rl.types import PromptBatch, Sample, TokenScores


class PolicyGradient(PolicyModule):
    """Samples completions, rewards them, and makes the better ones more likely.

    Args:
        policy: the model that learns and its tokenizer.
        sampler: draws completions.
        reward: scores completions; default: 1 for a correct answer, else 0; with recorded rollouts the recorded reward.
        optimizer: any torch or bitsandbytes optimizer; default: AdamW at 1e-6 without weight decay.
        group_size: completions per prompt.
        epochs: passes over a rollout; 1 with one minibatch is strictly on-policy.
        minibatches: optimizer steps per pass.
        negative_weight: factor on negative advantages; 1 keeps them as they are, 0 learns from positive advantages alone
            (as RAFT does, arXiv 2304.06767).
        overlong: treatment of completions that reach the length limit or come near it.
        objective: surrogate, ratio, clipping, aggregation, KL estimator, corrections.
        kl_coef: weight of the KL to the starting policy, in nats; 0 keeps no reference policy.
        entropy_coef: weight of the entropy bonus, the mean over the tokens in the loss in nats; 0 leaves it out.
        lm_coef: weight of the language-model loss on the prompts' true completions, the mean over their own tokens; 0 leaves
            it out.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        sampler: Sampler | None = None,
        reward: Reward | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        group_size: int = 8,
        epochs: int = 1,
        minibatches: int = 1,
        negative_weight: float = 1.0,
        overlong: Overlong = Overlong(),
        objective: Objective = Objective(),
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        lm_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, **options)
        self.sampler, self.reward = sampler or Sampler(), reward or ArithmeticAnswer()
        self._reward_given = reward is not None
        self.group_size, self.epochs, self.minibatches = group_size, epochs, minibatches
        self.negative_weight, self.overlong, self.objective = negative_weight, overlong, objective
        self.kl_coef, self.entropy_coef, self.lm_coef = kl_coef, entropy_coef, lm_coef
        self.reference: Reference | None = None
        self.recorder: Callable[[PromptBatch], None] | None = None  # takes the batches of `predict`, set by `RolloutWriter`
        self._agreed = False  # whether sampler and learner have been seen to agree
        check_least(self, "model", group_size=1, epochs=1, minibatches=1, negative_weight=0, kl_coef=0, lm_coef=0)
        check_sampling(self.sampler, group_size, epochs, minibatches, objective, policy.lora)

    # --- defined by each algorithm -------------------------------------------------------------------------------

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """(N, T) advantages of scored rollouts, whose reference log-probabilities are filled if there is a reference."""
        raise NotImplementedError

    def advantage_metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Metrics of rollouts with advantages, to log beside `lit_rl.training.step_metrics.rollout_metrics`."""
        return {}

    def new_tokens(self, training: bool) -> int:
        if not training:
            return super().new_tokens(training)
        # An arm's style is in no prompt of the data, and takes positions as new tokens do.
        return self.sampler.max_new_tokens + self.sampler.added_tokens(self.tokenizer)

    def skips_zero_advantages(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that leaving them out is exact."""
        return False

    # --- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            return
        if isinstance(data, Recorded):
            options = (self.renderer, self.group_size, self.objective, self.kl_coef, self.overlong, self._reward_given)
            check_replay(data, *options)
        elif isinstance(data, PromptDataModule):
            self.check_samples(data.train_set)

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse samples that the sampler or the reward cannot take."""
        self.sampler.check(self.group_size, some_of(samples))
        check_reward(self.reward, samples)

    def policies(self) -> list[Policy]:
        copy = self.reference.copy if self.reference else None
        return [self.policy] if copy is None else [self.policy, copy]

    def configure_policy(self) -> None:
        # Before the reference copies the policy: dropout would make a KL of two equal models positive.
        self.policy.disable_dropout()
        if not (self.policy.capabilities.packs or self.policy.capabilities.shares_prompts):
            rank_zero_info("Prompts are computed once per completion: this model's cache carries no gradient as configured.")
        if self.kl_coef:
            self.reference = Reference(self.policy, sharded=self.device_mesh is not None)

    def on_fit_start(self) -> None:
        # Lightning neither moves nor casts the copy, which is not a submodule.
        if self.reference and self.reference.copy is not None and self.device_mesh is None:
            self.trainer.precision_plugin.convert_module(self.reference.copy.to(self.device))

    def batch_plan(self, prompts: int) -> BatchPlan:
        trainer = self.trainer
        return BatchPlan(
            prompts, trainer.world_size, self.group_size, self.epochs, self.minibatches, trainer.accumulate_grad_batches
        )

    def training_stream(self, loader: DataLoader, plan: BatchPlan) -> Experience:
        self.experience = Experience(
            loader,
            plan,
            self.collector(),
            # Functions instead of the module: the stream sees nothing else of it.
            finish=self.add_advantages,
            unsharded=self.unsharded,
            aggregation=self.objective.aggregation,
            skips_zero_advantages=self.skips_zero_advantages,
        )
        return self.experience

    def collector(self) -> Collector:
        """Maker of scored rollouts: samples them, or takes them from recorded data."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Recorded):
            return RecordedCollector(self.actor, data, self.reward, self.overlong, self.group_size, rescores=self._reward_given)
        return Collector(self.actor, self.sampler, self.reward, self.overlong, self.group_size)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, str]]:
        if self.recorder is None:
            return super().predict_step(batch, batch_idx, dataloader_idx)
        self.recorder(batch)
        return []

    # --- from a scored rollout to its first step -----------------------------------------------------------------

    def add_advantages(self, rollouts: Rollouts) -> dict[str, float]:
        """Fill in advantages and all else that the loss reads; returns metrics to log with the rollout."""
        # First, since a KL in the reward is part of the advantages. A callback may have set the coefficient to 0.
        if self.reference and self.kl_coef:
            rollouts.ref_logprobs = self.score_in_chunks(rollouts, self.reference.score)
        # With a single step the learner's own pass is before any step: `Objective` detaches its log-probabilities.
        if self.objective.correction.method != "none" and self.epochs * self.minibatches > 1:
            rollouts.old_logprobs = self.score_in_chunks(rollouts, self._own_logprobs)
        mask = rollouts.loss_mask
        advantages = self.advantages(rollouts) * mask
        rollouts.advantages = torch.where(advantages < 0, advantages * self.negative_weight, advantages)
        if self.objective.top_entropy < 1:
            # One threshold for all ranks, or the tokens that learn would depend on how rows are spread.
            everyone = self.runtime.gather(rollouts.entropies[mask])
            rollouts.gradient_mask = top_entropy_mask(rollouts.entropies, mask, everyone, self.objective.top_entropy)
        return self.advantage_metrics(rollouts)

    def penalties(self, rollouts: Rollouts) -> Tensor:
        """(N, T) KL term taken off the reward at each token; zeros if it is a term of the loss, or there is none."""
        if not rollouts.has("ref_logprobs") or self.objective.kl_in != "reward":
            return torch.zeros_like(rollouts.logprobs)
        kl = kl_penalties(rollouts.logprobs, rollouts.ref_logprobs, self.objective.kl_estimator)
        return self.kl_coef * kl * rollouts.sampled

    def _own_logprobs(self, rollouts: Rollouts) -> Tensor:
        with torch.no_grad():
            return self.policy.score(rollouts, details=False).logprobs.float()

    def score_in_chunks(self, rollouts: Rollouts, score: Callable[[Rollouts], Tensor], columns: int = 0) -> Tensor:
        """(N, T + columns) scores, computed in as many chunks as a pass has micro-batches.

        A chunk needs no more memory than a micro-batch, and all ranks run the same number of forwards.

        Args:
            rollouts: whole rollouts.
            score: rollouts (n rows, t tokens) -> (n, t) to (n, t + columns).
            columns: columns that ``score`` adds.
        """
        scores = pad(torch.zeros_like(rollouts.logprobs), (0, columns))
        for chunk in torch.arange(rollouts.num_groups).chunk(self.minibatches * self.trainer.accumulate_grad_batches):
            groups = chunk.tolist()
            with self.runtime.forward_context():
                scored = score(rollouts.select(groups))  # cut to the chunk's longest row: other columns stay 0
            rows = rollouts.rows_of(groups)
            scores[rows[:, None], torch.arange(scored.shape[1], device=rows.device)] = scored
        return scores

    # --- a step --------------------------------------------------------------------------------------------------

    def policy_loss(self, batch: MicroBatch[Rollouts], scores: TokenScores) -> BatchLoss:
        """Share of a micro-batch in the loss and in the metrics of its optimizer step.

        Args:
            batch: the micro-batch.
            scores: scores of its tokens under the learner.
        """
        rollouts = batch.rows
        # Against the sampler's record: a detached copy of the learner's own values would always give 0.
        log_ratio = (scores.logprobs - rollouts.logprobs).detach() * rollouts.sampled  # (N, T)
        self._check_sampler(batch, log_ratio)
        losses, shares, means, weights = self.objective.token_losses(scores, rollouts, self.kl_coef)
        loss = (losses * batch.weights).sum()
        sampled = rollouts.sampled * rollouts.multiplicity[:, None]  # (N, T)
        in_loss = rollouts.loss_mask * rollouts.multiplicity[:, None]
        # Divided by the count of the whole step, so that shares of micro-batches and ranks add up.
        sums = {name: (value * in_loss).sum() / max(batch.num_tokens, 1) for name, value in shares.items()}
        if self.entropy_coef:
            # A mean over tokens whatever the aggregation, which would scale the coefficient.
            loss = loss - self.entropy_coef * (scores.entropies * in_loss).sum() / max(batch.num_tokens, 1)
        if self.lm_coef:
            # Every prompt is in the batch: with this term no group is left out.
            sums["lm_loss"] = self._language_loss(batch)
            loss = loss + self.lm_coef * sums["lm_loss"]
        means["sampling/sampling_logp_difference/mean"] = log_ratio.abs()
        ranges = {}
        if weights is not None:
            means["sampling/importance_sampling_ratio/mean"] = weights
            ranges["sampling/importance_sampling_ratio"] = weights[rollouts.sampled]
        # Means are over the tokens that were scored, since groups without signal may have been left out.
        scored = sampled.sum()
        ratios = {name: ((value * sampled).sum(), scored) for name, value in means.items()}
        return BatchLoss(loss, sums, ratios, ranges)

    def _language_loss(self, batch: MicroBatch[Rollouts]) -> Tensor:
        """Share of a micro-batch in the language-model loss of its optimizer step."""
        # The bare text: a template around it is for answering, not for the text that is learnt.
        prompts = self.renderer.plain(batch.rows.prompts)
        rows = supervised_rows(prompts, self.renderer.pad_id, self.policy.context).to(self.device)
        return -self.policy.score_sequences(rows).logprobs.sum() / batch.num_targets

    def _check_sampler(self, batch: MicroBatch[Rollouts], log_ratio: Tensor) -> None:
        """Refuse a learner whose log-probabilities differ from the sampler's before any step."""
        if batch.on_policy and not self._agreed:
            full = self.policy_spec.dtype in ("float32", "float64") and str(self.trainer.precision).startswith(("32", "64"))
            self._agreed = check_agreement(log_ratio, batch.rows.sampled, full, self.runtime.sum)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward"] = self.reward.state_dict()
        checkpoint["reference"] = self.reference.fingerprint if self.reference else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference and self.trainer.training:
            self.reference.check_unchanged(checkpoint.get("reference"))
        self.reward.load_state_dict(checkpoint.get("reward") or {})
