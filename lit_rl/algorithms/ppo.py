"""Proximal policy optimization with a critic (PPO, arXiv 1707.06347) on language models.

A critic V estimates before each token the return of the rest of the completion. Advantages are rewards beyond that estimate,
smoothed over the tokens that follow (GAE, arXiv 1506.02438, equation 16):

    r_t     = -kl_coef KL_t, and at the last token the reward too
    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma lam A_{t+1},     R_t = A_t + V_t
    loss    = -min(rho A, clip(rho) A) + value_coef max((V - R)^2, (clip(V) - R)^2) / 2 - entropy_coef H

After the last token V is 0 if the completion ended. If the length limit cut the completion off, V is the critic's value there
(the bootstrap value), since the cut says nothing about the rest. A rollout serves ``epochs x minibatches`` optimizer steps, or
fewer: once the policy is further than ``target_kl`` from the policy that sampled, all ranks go on to the next rollout.

Run: ``lit-rl fit --config ppo_arithmetic``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_rl.algorithms.critic import Critic, build_critic_model
from lit_rl.algorithms.policy_gradient import PolicyGradient
from lit_rl.models.policy import Policy
from lit_rl.models.spec import PolicySpec
from lit_rl.models.value_head import critic_metrics
from lit_rl.objectives.advantages import generalized_advantages, token_rewards, whiten
from lit_rl.objectives.kl import kl_estimate
from lit_rl.objectives.losses import value_loss
from lit_rl.objectives.objective import Objective
from lit_rl.options import check_least
from lit_rl.rollouts import Rollouts
from lit_rl.training.step_metrics import BatchLoss
from lit_rl.training.stream import MicroBatch
from lit_rl.training.weights import check_quantization

KL_IN_REWARD = Objective(kl_in="reward", kl_estimator="k1")
"""PPO's usual place for the KL to the reference: at each token in the reward (arXiv 1909.08593, section 2)."""


class PPO(PolicyGradient):
    """Proximal policy optimization with a critic.

    Args:
        policy: the model that learns and its tokenizer.
        critic: model of its own for the critic; default: a value head on the policy's trunk.
        critic_lr: learning rate of the critic, a group of the policy's optimizer; default: the policy's rate. At 1e-6 a critic
            learns next to nothing: ten times the policy's rate is usual.
        critic_warmup: optimizer steps in which only the critic learns; a shared trunk stays as it is. The policy's schedule
            begins after them.
        group_size: completions per prompt.
        epochs: passes over a rollout.
        minibatches: optimizer steps per pass.
        gamma: discount per token.
        lam: GAE's lambda; 0 trusts the critic, 1 trusts the rewards.
        bootstrap: whether a completion that was cut off earns the critic's value after its last token, beside its reward; false
            if the cut is a failure, or the end of every completion.
        whiten: whether advantages are brought to mean 0 and std 1 over all tokens of the rollout.
        value_coef: weight of the critic's loss.
        value_clip: distance that values may move on one rollout before their gradient stops; 0 sets no limit.
        target_kl: KL in nats per token between the policy that sampled and the learner, past which the remaining steps of a
            rollout (of at least three) are left out; 0 = never.
        objective: surrogate, ratio, clipping, aggregation, KL estimator, corrections; default: as GRPO's, but the KL to the
            starting policy is taken off the reward, estimated by k1.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        critic: PolicySpec | None = None,
        critic_lr: float | None = None,
        critic_warmup: int = 0,
        group_size: int = 1,
        epochs: int = 4,
        minibatches: int = 4,
        gamma: float = 1.0,
        lam: float = 0.95,
        bootstrap: bool = True,
        whiten: bool = True,
        value_coef: float = 0.1,
        value_clip: float = 0.2,
        target_kl: float = 0.0,
        objective: Objective = KL_IN_REWARD,
        **options: Any,
    ) -> None:
        super().__init__(policy, group_size=group_size, epochs=epochs, minibatches=minibatches, objective=objective, **options)
        self.critic_spec, self.critic_lr, self.critic_warmup = critic, critic_lr, critic_warmup
        self.gamma, self.lam, self.bootstrap, self.whiten = gamma, lam, bootstrap, whiten
        self.value_coef, self.value_clip, self.target_kl = value_coef, value_clip, target_kl
        self.critic_model: Policy | None = None
        self._check_critic_options()
        self.strict_loading = not critic_warmup  # FSDP2 would refuse an optimizer that has not touched the policy yet

    def _check_critic_options(self) -> None:
        if self.critic_spec is not None:
            check_quantization(self.critic_spec, "critic")
        check_least(self, "model", critic_warmup=0, value_coef=0, value_clip=0, target_kl=0, gamma=0, lam=0)
        if self.critic_lr is not None:
            check_least(self, "model", critic_lr=0)
        for option in ("gamma", "lam"):
            if getattr(self, option) > 1:
                raise ValueError(f"model.{option} is {getattr(self, option)}; write 1 or less.")
        steps = self.epochs * self.minibatches
        if self.target_kl and steps < 3:
            raise ValueError(
                f"model.target_kl is {self.target_kl} with {steps} step(s) a rollout: the second is the first to pass it, "
                "and is taken; write epochs and minibatches for 3 steps or more, or target_kl 0."
            )

    # --- the critic ----------------------------------------------------------------------------------------------

    def configure_policy(self) -> None:
        super().configure_policy()
        if self.critic_spec is not None:
            self.critic_model = build_critic_model(self.critic_spec, self.policy, self.tokenizer.get_vocab(), self.seed)
        self.critic = Critic(self.policy, self.critic_model)

    def policies(self) -> list[Policy]:
        return super().policies() + ([] if self.critic_model is None else [self.critic_model])

    def exports(self) -> dict[str, Policy]:
        return super().exports() | ({} if self.critic_model is None else {"_critic": self.critic_model})

    def parameters_to_learn(self) -> dict[str, dict[str, Any]]:
        rate = {} if self.critic_lr is None else {"lr": self.critic_lr}
        critic = {"params": self.critic.parameters()} | rate
        return {"policy": {"params": self.policy_parameters()}, "critic": critic}

    def policy_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the policy without the critic's head."""
        # A set compares tensors by identity; `in` on a list would compare them element by element.
        head = set(self.critic.parameters())
        learning = super().parameters_to_learn()["policy"]["params"]
        return [parameter for parameter in learning if parameter not in head]

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        scheduler = configured["lr_scheduler"]["scheduler"]
        if self.critic_warmup and isinstance(scheduler, LambdaLR):
            # A rate that had warmed up before the policy's first step would be a blow to it.
            rate = scheduler.lr_lambdas[0]
            scheduler.lr_lambdas[0] = lambda step: rate(max(0, step - self.critic_warmup))
        return configured

    # --- advantages ----------------------------------------------------------------------------------------------

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """(N, T) advantages by GAE; fills in the critic's values and returns."""
        expected = self.score_in_chunks(rollouts, self.critic.expected, columns=1)  # (N, T + 1)
        # The mask drops the bootstrap value of a truncated row that is shorter than T.
        rollouts.values = expected[:, :-1] * rollouts.sampled
        bootstrap_values = expected.gather(1, rollouts.lengths[:, None])[:, 0] * (rollouts.truncated & self.bootstrap)  # (N)
        rewards = token_rewards(rollouts.rewards, self.penalties(rollouts), rollouts.sampled)  # (N, T)
        advantages = generalized_advantages(rewards, rollouts.values, bootstrap_values, rollouts.sampled, self.gamma, self.lam)
        rollouts.returns = advantages + rollouts.values
        return whiten(advantages, rollouts.loss_mask, self.runtime.sum) if self.whiten else advantages

    def advantage_metrics(self, rollouts: Rollouts) -> dict[str, float]:
        metrics = critic_metrics(rollouts.values, rollouts.returns, rollouts.loss_mask, self.runtime.sum)
        return {f"critic/{name}": value for name, value in metrics.items()}

    # --- a step --------------------------------------------------------------------------------------------------

    @property
    def _warming(self) -> bool:
        """Whether only the critic learns at this step."""
        return self.trainer.global_step < self.critic_warmup

    def batch_loss(self, batch: MicroBatch[Rollouts]) -> BatchLoss:
        rollouts = batch.rows
        scores, values = self.critic.score_with_values(rollouts, entropy_grad=self.entropy_coef != 0, detached=self._warming)
        step = self.policy_loss(batch, scores)
        # The critic's loss has the policy's weights, so it does not depend on how the batch is cut either.
        losses, clipped = value_loss(values, rollouts.values, rollouts.returns, self.value_clip)
        critic_loss = (losses * batch.weights).sum()
        # A policy that does not learn yet still needs gradients: DDP waits for each of them.
        loss = (0.0 if self._warming else 1.0) * step.loss + self.value_coef * critic_loss
        sums = {"loss/policy": step.loss, "loss/critic": critic_loss}
        multiplicity = rollouts.multiplicity[:, None]
        sums["critic/clip_ratio"] = (clipped * rollouts.loss_mask * multiplicity).sum() / max(batch.num_tokens, 1)
        sampled = rollouts.sampled * multiplicity
        # The sampler comes first: k3 is unbiased for KL(p || q) only at tokens drawn from p.
        drift = kl_estimate(rollouts.logprobs, scores.logprobs.detach())
        ratios = {"approx_kl": ((drift * sampled).sum(), sampled.sum())}
        return BatchLoss(loss, sums | step.sums, ratios | step.ratios, step.ranges)

    def record(self, batch: MicroBatch[Any], loss: BatchLoss) -> dict[str, float]:
        logged = super().record(batch, loss)
        # Logged values are sums over ranks at the step's last micro-batch: all ranks stop, and at a step boundary.
        if self.target_kl and logged.get("approx_kl", 0.0) > self.target_kl:
            self.experience.stopped = True
        return logged

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.trainer.global_step <= self.critic_warmup:
            # The policy has taken no step, but loading under FSDP2 makes up averages for it.
            for parameter in self.policy_parameters():
                self.trainer.optimizers[0].state.pop(parameter, None)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._warming:  # gradients of zero would still decay weights and fill the optimizer's averages
            for parameter in self.policy_parameters():
                parameter.grad = None
