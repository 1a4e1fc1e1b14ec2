"""Critic of PPO: a value head on the policy's trunk, or a model of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator

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

    Not an ``nn.Module``: its weights belong to the policy, or to the model that the algorithm holds.

    Args:
        policy: the policy.
        model: model with a value head that reads what the policy writes; None: a value head on the policy's trunk.
    """

    def __init__(self, policy: Policy, model: Policy | None = None) -> None:
        self._policy, self._model = policy, model or policy
        if model is None:
            policy.add_value_head()

    @property
    def shares_trunk(self) -> bool:
        """Whether it is a head on the policy's trunk."""
        return self._model is self._policy

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that learn returns: of the head alone, or of the whole model."""
        module = self._model.value_head if self.shares_trunk else self._model
        assert module is not None
        return (parameter for parameter in module.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def expected(self, rollouts: Rollouts) -> Tensor:
        """(N, T + 1) float32 values before each sampled token, and after the last one of a truncated row."""
        return self._model.values(with_bootstrap_position(rollouts)).float()

    def score(self, rollouts: Rollouts, entropy_grad: bool, detached: bool) -> tuple[TokenScores, Tensor]:
        """Scores of the sampled tokens under the policy, and their values (N, T), both with gradient.

        Args:
            rollouts: the rows.
            entropy_grad: whether entropies carry gradient.
            detached: keep the gradient of the values out of a shared trunk.
        """
        if self.shares_trunk:
            return self._policy.score_with_values(rollouts, entropy_grad, detached)
        return self._policy.score(rollouts, entropy_grad, details=False), self._model.values(rollouts)


def build_critic_model(spec: PolicySpec, policy: Policy, vocabulary: dict[str, int], seed: int) -> Policy:
    """A model with a value head that reads what the policy writes.

    Args:
        spec: where it comes from.
        policy: the policy.
        vocabulary: of the policy's tokenizer.
        seed: seeds its weights, if they are new.

    Raises:
        ValueError: if it cannot be built, has another tokenizer, or fewer positions than the policy.
    """
    try:
        tokenizer = load_tokenizer(spec)
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
    model.disable_dropout()
    _freeze_unused_head(model)
    model.add_value_head()
    return model


def _freeze_unused_head(model: Policy) -> None:
    """Under DDP a weight without a gradient is an error; a head that is the embedding too has one."""
    head, embeddings = model.causal_lm.get_output_embeddings(), model.causal_lm.get_input_embeddings()
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)
