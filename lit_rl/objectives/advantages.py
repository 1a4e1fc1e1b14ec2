"""From rewards to advantages: how much better a completion, or a token of it, was than expected. Pure functions on tensors.

Group baselines compare the completions of one prompt: `group_advantages`. Without groups there are returns per token
(`reward_to_go`), a baseline over the whole batch (`whiten`) and a critic's (`generalized_advantages`).
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
    - ``phantom_zero``: mean and std of the group with one reward of 0 added (LLM-quest's RPT): groups that are all right
      keep an advantage.

    Args:
        rewards: (P, G), each row a group.
        baseline: which of the three.
        scale: ``group`` divides by the std within the group, ``batch`` by that of all rewards (Lite PPO,
            arXiv 2508.08221), ``none`` does not divide (Dr. GRPO, arXiv 2503.20783).
        batch_std: 0-D std of all rewards for ``scale`` ``batch``; default: of these rewards.
        eps: added to the std.

    Returns:
        (P, G); exactly 0 in a group whose rewards are all equal, unless they are above a phantom zero, and in groups of one.
    """
    members = torch.cat([rewards, torch.zeros_like(rewards[:, :1])], dim=1) if baseline == "phantom_zero" else rewards
    if members.shape[1] == 1:  # nothing to compare with, and no std
        return torch.zeros_like(rewards)
    centered = rewards - members.mean(dim=1, keepdim=True)
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
        ValueError: with the combinations that do.
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
    """Advantages of scored rollouts against each other, without a critic.

    Args:
        rollouts: with rewards, of this rank.
        penalties: (N, T) taken off the reward at each token.
        baseline: baseline of a reward, see `GRPO`.
        scale: divisor of advantages.
        total: sums a tensor over all ranks.
        gather: concatenates values (n) of all ranks.

    Returns:
        (N, T).
    """
    sampled = rollouts.sampled
    if baseline == "none":
        return reward_to_go(rollouts.rewards, penalties, sampled)
    if baseline == "batch":
        returns = reward_to_go(rollouts.rewards, penalties, sampled)
        return whiten(returns, rollouts.loss_mask, total, scale=scale == "batch")
    rewards = rollouts.rewards - penalties.sum(1)
    std = gather(rewards).std() if scale == "batch" else None
    compare = partial(group_advantages, baseline=baseline, scale=scale, batch_std=std)
    return rollouts.within_groups(rewards, compare)[:, None].expand(sampled.shape)


def token_rewards(rewards: Tensor, penalties: Tensor, sampled: Tensor) -> Tensor:
    """Reward of each token: the penalty taken off, and at a row's last sampled token the reward added.

    Args:
        rewards: (N) of whole completions.
        penalties: (N, T).
        sampled: (N, T) bool.

    Returns:
        (N, T); 0 at tokens that were not sampled, except at the first token of rows without any.
    """
    place = torch.arange(sampled.shape[1], device=sampled.device)
    last = (sampled * place).amax(1, keepdim=True)  # (N, 1)
    return (-penalties * sampled).scatter_add(1, last, rewards[:, None])


def equal_groups(rewards: Tensor) -> Tensor:
    """(P, G) -> (P) bool, True where all rewards of the group are exactly equal: it teaches nothing."""
    return torch.all(rewards == rewards[:, :1], dim=1)


def reward_to_go(rewards: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """What a token and all that follow it earned: ``R_t = r - sum_{u >= t} penalty_u`` (REINFORCE++, arXiv 2501.03262).

    Args:
        rewards: (N), paid at the end of a completion.
        penalties: (N, T), paid at each token: the KL term of a reward.
        mask: (N, T) bool.

    Returns:
        (N, T); 0 where the mask is False.
    """
    paid = penalties * mask
    ahead = paid.flip(1).cumsum(1).flip(1)
    return (rewards[:, None] - ahead) * mask


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor], scale: bool = True, eps: float = 1e-8) -> Tensor:
    """Subtract the mean over all tokens that count, and divide by their std: ``(x - mean) / (std + eps)``.

    REINFORCE++ (arXiv 2501.03262) and PPO take it over the tokens of the whole batch; the std is unbiased.

    Args:
        values: (N, T) of this rank.
        mask: (N, T) bool.
        total: sums a tensor over all ranks.
        scale: whether to divide.
        eps: added to the std.

    Returns:
        (N, T); 0 where the mask is False.
    """
    kept = values.double() * mask
    added, count = total(torch.stack([kept.sum(), mask.sum().double()]))
    centered = (values.double() - added / count.clamp(min=1)) * mask
    if scale:
        variance = total(centered.square().sum()[None])[0] / (count - 1).clamp(min=1)
        centered = centered / (variance.sqrt() + eps)
    return centered.to(values.dtype)


def generalized_advantages(
    rewards: Tensor, values: Tensor, last_values: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalized advantage estimation (GAE, arXiv 1506.02438, eq. 16) over the tokens of a completion.

    ``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``. Returns for the critic are ``A + V``.

    Args:
        rewards: (N, T) per token.
        values: (N, T), what the critic expects before each token.
        last_values: (N), what it expects after the last one: 0 where the completion ended, its value where it was cut off.
        mask: (N, T) bool, True at a row's first ``length`` tokens.
        gamma: discount per token.
        lam: 0 trusts the critic, 1 the rewards.

    Returns:
        (N, T); 0 where the mask is False.
    """
    advantages = torch.zeros_like(values)
    ahead, following = torch.zeros_like(last_values), last_values
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, ahead, 0.0)
    return advantages
