"""A critic with a model of its own, beside a policy."""

from __future__ import annotations

import math

from lit_rl.loading import PolicySpec, load_tokenizer
from lit_rl.policy import Policy
from lit_rl.policy_check import check_policy
from lit_rl.randomness import seeded


def build_critic(spec: PolicySpec, policy: Policy, vocabulary: dict[str, int], seed: int) -> Policy:
    """A model with a value head that reads what the policy writes.

    Args:
        spec: where it comes from.
        policy: the policy.
        vocabulary: of the policy's tokenizer.
        seed: of its weights, where they are new.

    Raises:
        ValueError: where it cannot be built, has another tokenizer, or fewer positions than the policy.
    """
    try:
        tokenizer = load_tokenizer(spec)
        with seeded(seed):
            critic = Policy(spec, tokenizer)
        check_policy(critic)
    except ValueError as error:
        raise ValueError(str(error).replace("model.policy", "model.critic")) from error
    if tokenizer.get_vocab() != vocabulary:
        raise ValueError("model.critic has another tokenizer than model.policy; it reads the policy's tokens: write the same.")
    if (critic.context or math.inf) < (policy.context or math.inf):
        raise ValueError(
            f"model.critic has {critic.context} positions and model.policy {policy.context or 'no limit'}; "
            "choose a critic with at least as many."
        )
    critic.disable_dropout()
    _freeze_unused_head(critic)
    critic.add_value_head()
    return critic


def _freeze_unused_head(critic: Policy) -> None:
    """Under DDP a weight without a gradient is an error; a head that is the embedding too has one."""
    head, embeddings = critic.causal_lm.get_output_embeddings(), critic.causal_lm.get_input_embeddings()
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)
