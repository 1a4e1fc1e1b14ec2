"""Critic of PPO: a value head on the policy's trunk, or a model of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_rl.models.loading import load_tokenizer
from lit_rl.models.policy import Policy
from lit_rl.models.spec import PolicySpec
from lit_rl.models.value_head import with_bootstrap_position
from lit_rl.randomness import seeded
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.check import check_policy
from lit_rl.types import TokenScores


class Critic:
    """Expected return before each token.

    Not an ``nn.Module``: its weights belong to the policy, or to a model that the algorithm holds.

    Args:
        policy: the policy.
        model: model with a value head that reads the policy's tokens; None adds a value head to the policy's trunk.
    """

    def __init__(self, policy: Policy, model: Policy | None = None) -> None:
        self._policy, self._model = policy, model or policy
        if model is None:
            policy.add_value_head()

    @property
    def shares_trunk(self) -> bool:
        """Whether the critic is a head on the policy's trunk."""
        return self._model is self._policy

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the critic: the head on a shared trunk, or the whole model."""
        named = [(name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        return [parameter for name, parameter in named if name.startswith("value_head.") or not self.shares_trunk]

    @torch.no_grad()
    def expected(self, rollouts: Rollouts) -> Tensor:
        """(N, T + 1) float32 values before each sampled token, and the bootstrap value after a truncated row's last token.

        (N, T) if no row of full length is truncated.
        """
        return self._model.values(with_bootstrap_position(rollouts)).float()

    def score_with_values(self, rollouts: Rollouts, entropy_grad: bool, detached: bool) -> tuple[TokenScores, Tensor]:
        """Scores of the sampled tokens under the policy, and their values (N, T), both with gradient.

        Args:
            rollouts: the rows.
            entropy_grad: whether entropies carry gradient.
            detached: whether a shared trunk gets no gradient from the values.
        """
        if self.shares_trunk:
            return self._policy.score_with_values(rollouts, entropy_grad, detached)
        return self._policy.score(rollouts, entropy_grad, details=False), self._model.values(rollouts)


def build_critic_model(spec: PolicySpec, policy: Policy, vocabulary: dict[str, int], seed: int) -> Policy:
    """Model with a value head that reads the policy's tokens.

    Args:
        spec: origin of the model.
        policy: the policy.
        vocabulary: ids of the tokens of the policy's tokenizer.
        seed: seeds new weights.

    Raises:
        ValueError: if the model cannot be built, has another tokenizer, or has fewer positions than the policy.
    """
    try:
        tokenizer = load_tokenizer(spec)
        # FSDP2 shards what each rank holds and broadcasts nothing: new weights must be the same on all ranks.
        with seeded(seed):
            model = Policy(spec, tokenizer)
        check_policy(model)
    except ValueError as error:
        raise ValueError(str(error).replace("model.policy", "model.critic")) from error
    if tokenizer.get_vocab() != vocabulary:
        raise ValueError("model.critic has another tokenizer than model.policy; it reads the policy's tokens: write the same.")
    if (model.context or math.inf) < (policy.context or math.inf):
        raise ValueError(
            f"model.critic has {model.context} positions and model.policy {policy.context or 'no limit'}; "
            "choose a critic with at least as many."
        )
    # Returns and clipping compare values of several passes, which dropout would make differ.
    model.disable_dropout()
    _freeze_unused_head(model)
    model.add_value_head()
    return model


def _freeze_unused_head(model: Policy) -> None:
    """Freeze a language-model head that no loss reads, since DDP refuses a weight without gradient; a tied head has one."""
    head, embeddings = model.causal_lm.get_output_embeddings(), model.causal_lm.get_input_embeddings()
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)
