"""Advantages: how much better a completion, or a token of it, was than expected. Pure functions on tensors.

Group baselines compare the completions of one group: `group_advantages`. Without groups there are returns of tokens
(`reward_to_go`), a baseline over the whole batch (`whiten`) and a critic (`generalized_advantages`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lit_rl.options import check_choice
from lit_rl.rollouts import Rollouts

Baseline = Literal["group", "leave_one_out", "phantom_zero", "batch", "none"]
GroupBaseline = Literal["group", "leave_one_out", "phantom_zero"]
AdvantageScale = Literal["group", "batch", "none"]


def group_advantages(
    rewards: Tensor,
    baseline: GroupBaseline = "group",
    scale: AdvantageScale = "group",
    batch_std: Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Reward minus a baseline from its own group, divided by a standard deviation.

    ``A_i = (r_i - b_i) / (std + eps)`` with the unbiased std. Example: rewards 1 0 1 0 have mean 0.5 and std 0.57735, hence
    GRPO's advantages are +-0.866 (+-0.86587 with eps = 1e-4).

    - ``group``: ``b_i = mean(r)`` (GRPO, arXiv 2402.03300, section 4.1.2).
    - ``leave_one_out``: the mean of the others, ``b_i = sum_{j != i} r_j / (G - 1)`` (RLOO, arXiv 2402.14740), which
      makes ``r_i - b_i = G / (G - 1) (r_i - mean(r))``, the form of RLP (arXiv 2510.01265).
    - ``phantom_zero``: mean and std of the group with one reward of 0 added (LLM-quest's RPT): a group that is all right
      keeps an advantage.

    Args:
        rewards: (n, G), each row a group.
        baseline: one of the three.
        scale: ``group`` divides by the std of the group, ``batch`` by the std of all rewards (Lite PPO,
            arXiv 2508.08221), ``none`` does not divide (Dr. GRPO, arXiv 2503.20783).
        batch_std: 0-D std of all rewards for ``scale`` ``batch``; default: std of ``rewards``.
        eps: added to the std.

    Returns:
        (n, G); exactly 0 if all rewards compared are equal, a phantom zero among them, and in groups of one without phantom.
    """
    # (n, G), or (n, G + 1) with the phantom
    members = torch.cat([rewards, torch.zeros_like(rewards[:, :1])], dim=1) if baseline == "phantom_zero" else rewards
    if members.shape[1] == 1:  # no other reward to compare with, and no std
        return torch.zeros_like(rewards)
    centered = rewards - members.mean(dim=1, keepdim=True)  # (n, G)
    if baseline == "leave_one_out":
        centered = centered * (rewards.shape[1] / (rewards.shape[1] - 1))
    # The mean of equal rewards may be off by rounding, and a std of 1e-8 would blow that up into a signal.
    centered = centered.masked_fill(equal_groups(members)[:, None], 0.0)
    if scale == "none":
        return centered
    if scale == "batch":
        return centered / ((rewards.std() if batch_std is None else batch_std) + eps)
    return centered / (members.std(dim=1, keepdim=True) + eps)


def check_comparison(baseline: Baseline, scale: AdvantageScale) -> None:
    """Refuse a baseline and a scale that do not go together.

    Raises:
        ValueError: with the combinations that go together.
    """
    check_choice("model.baseline", baseline, Baseline)
    check_choice("model.advantage_scale", scale, AdvantageScale)
    allowed = {"batch": ("batch", "none"), "none": ("none",)}.get(baseline, ("group", "batch", "none"))
    if scale not in allowed:
        raise ValueError(
            f"model.advantage_scale {scale} does not go with baseline {baseline}. What goes together: "
            "group, leave_one_out and phantom_zero with group, batch or none; batch with batch or none; none with none."
        )


def relative_advantages(
    rollouts: Rollouts,
    penalties: Tensor,
    baseline: Baseline,
    scale: AdvantageScale,
    total: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
) -> Tensor:
    """Advantages of scored rollouts, which are compared with each other, without a critic.

    Args:
        rollouts: rollouts of this rank, with rewards.
        penalties: (N, T) taken off the reward at each token; 0 at tokens that were not sampled.
        baseline: baseline of a reward, see `GRPO`.
        scale: divisor of advantages.
        total: sums a tensor over all ranks.
        gather: concatenates values (n) of all ranks.

    Returns:
        (N, T); at tokens that were not sampled without meaning.
    """
    sampled = rollouts.sampled
    if baseline == "none":
        return reward_to_go(rollouts.rewards, penalties, sampled)
    if baseline == "batch":
        returns = reward_to_go(rollouts.rewards, penalties, sampled)
        return whiten(returns, rollouts.loss_mask, total, scale=scale == "batch")
    rewards = rollouts.rewards - penalties.sum(1)  # (N)
    # Over all ranks, so that advantages do not depend on how groups are spread.
    std = gather(rewards[rollouts.scored]).std() if scale == "batch" else None
    compare = partial(group_advantages, baseline=baseline, scale=scale, batch_std=std)
    return rollouts.within_groups(rewards, compare)[:, None].expand(sampled.shape)  # (N, T)


def token_rewards(rewards: Tensor, penalties: Tensor, sampled: Tensor) -> Tensor:
    """Reward of each token: minus its penalty, and at a row's last sampled token plus the reward (arXiv 1909.08593, section 2).

    Args:
        rewards: (N) of whole completions.
        penalties: (N, T).
        sampled: (N, T) bool.

    Returns:
        (N, T); 0 at tokens that were not sampled, except that a row without sampled tokens has its reward at the first token.
    """
    place = torch.arange(sampled.shape[1], device=sampled.device)
    # Not `lengths - 1`: a row may end with tokens that the policy did not write, which carry no loss.
    last = (sampled * place).amax(1, keepdim=True)  # (N, 1)
    return (-penalties * sampled).scatter_add(1, last, rewards[:, None])


def equal_groups(rewards: Tensor) -> Tensor:
    """(n, G) rewards -> (n) bool, True if all rewards of the group are exactly equal."""
    return torch.all(rewards == rewards[:, :1], dim=1)


def reward_to_go(rewards: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Return of each token: ``R_t = r - sum_{u >= t} penalty_u`` (REINFORCE++, arXiv 2501.03262).

    Args:
        rewards: (N), paid at the end of a completion.
        penalties: (N, T), paid at each token: the KL term of a reward.
        mask: (N, T) bool, True at sampled tokens.

    Returns:
        (N, T); 0 outside the mask.
    """
    paid = penalties * mask
    ahead = paid.flip(1).cumsum(1).flip(1)  # (N, T), sum from each token to the end
    return (rewards[:, None] - ahead) * mask


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor], scale: bool = True, eps: float = 1e-8) -> Tensor:
    """Subtract the mean over all tokens that count, and divide by their std: ``(x - mean) / (std + eps)``.

    REINFORCE++ (arXiv 2501.03262) and PPO whiten over the tokens of the whole batch. The std is unbiased.

    Args:
        values: (N, T) of this rank.
        mask: (N, T) bool, True at tokens that count.
        total: sums a tensor over all ranks.
        scale: whether to divide.
        eps: added to the std.

    Returns:
        (N, T); 0 outside the mask.
    """
    # float64: float32 sums over all tokens of a rollout lose digits.
    kept = values.double() * mask
    added, count = total(torch.stack([kept.sum(), mask.sum().double()]))
    centered = (values.double() - added / count.clamp(min=1)) * mask
    if scale:
        # A second pass: mean of squares minus square of mean cancels if the mean is large.
        variance = total(centered.square().sum()[None])[0] / (count - 1).clamp(min=1)
        centered = centered / (variance.sqrt() + eps)
    whitened: Tensor = centered.to(values.dtype)
    return whitened


def generalized_advantages(
    rewards: Tensor, values: Tensor, last_values: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalized advantage estimation (GAE, arXiv 1506.02438, eq. 16) over the tokens of a completion.

    ``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``. Returns for the critic are ``A + V``.

    Args:
        rewards: (N, T) per token.
        values: (N, T), return expected by the critic before each token.
        last_values: (N), bootstrap value: return expected after the last token, 0 if the completion ended there.
        mask: (N, T) bool, True at sampled tokens; the recursion steps over all others.
        gamma: discount per token.
        lam: 0 trusts the critic, 1 the rewards.

    Returns:
        (N, T); 0 outside the mask.
    """
    advantages = torch.zeros_like(values)
    ahead, following = torch.zeros_like(last_values), last_values  # (N): A and V of the next token in the mask
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, ahead, 0.0)
    return advantages
