"""The objectives as the papers write them: one row and one token after another, in float64.

Nothing here knows how the library computes them. A batch is a list of rows without padding and without tokens that the policy
did not sample; log-probabilities that learn are a list of lists of 0-D tensors, so that autograd gives the gradient of the
formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_rl.objectives import Correction, Objective


@dataclass
class Row:
    """One completion; lists have a number per sampled token."""

    sampler: list[float]
    """log p of the policy that sampled, as the sampler computed it."""
    advantages: list[float]
    old: list[float] | None = None
    """The learner's own log p before its first step; None where it has not taken one."""
    reference: list[float] = field(default_factory=list)
    gradient_mask: list[bool] | None = None
    in_loss: bool = True


def clipped(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))


def surrogate(o: Objective, r: Tensor, logprob: Tensor, a: float) -> Tensor:
    """The gain at one token of ratio r and advantage a."""
    if o.surrogate == "reinforce":
        return a * logprob
    if o.surrogate == "cispo":  # arXiv 2506.13585, eqs. 4 and 5
        return clipped(r.item(), 1 - o.clip_low, 1 + o.clip_high) * a * logprob
    if o.surrogate == "sapo":  # arXiv 2511.20347: 4 / tau / (1 + exp(-tau (r - 1)))
        tau = o.sapo_positive if a > 0 else o.sapo_negative
        return 4 / tau / (1 + torch.exp(-tau * (r - 1))) * a
    # PPO, arXiv 1707.06347, figure 1: for A > 0 the gain stops growing at 1 + high, for A < 0 at 1 - low.
    if a >= 0:
        return r * a if r.item() <= 1 + o.clip_high else r.new_tensor((1 + o.clip_high) * a)
    if r.item() < 1 - o.clip_low:
        return r.new_tensor((1 - o.clip_low) * a)
    if o.dual_clip and r.item() > o.dual_clip:  # arXiv 1912.09729, eq. 5
        return r.new_tensor(o.dual_clip * a)
    return r * a


def ratios(o: Objective, logprobs: list[Tensor], old: list[float]) -> list[Tensor]:
    """The importance ratio at each token of a row."""
    if o.ratio == "token":
        return [torch.exp(new - before) for new, before in zip(logprobs, old, strict=True)]
    # GSPO-token, arXiv 2507.18071, eq. 14: sg(s) p(y_t) / sg(p(y_t)), s the geometric mean of the tokens' ratios.
    mean = sum(new.item() - before for new, before in zip(logprobs, old, strict=True)) / len(old)
    return [math.exp(mean) * torch.exp(new) / torch.exp(new).detach() for new in logprobs]


def kl(estimator: str, logprob: Tensor, reference: float) -> Tensor:
    """Schulman 2020, "Approximating KL divergence", with x = log q / p."""
    x = reference - logprob
    return {"k1": lambda: -x, "k2": lambda: x * x / 2, "k3": lambda: torch.exp(x) - 1 - x}[estimator]()


def sampler_weights(c: Correction, old: list[float], sampler: list[float]) -> list[float]:
    """p_learner / p_sampler at each token of a row, truncated or masked."""
    weights = [math.exp(a - b) for a, b in zip(old, sampler, strict=True)]
    if c.level == "sequence":
        weights = [math.prod(weights)] * len(weights)
    if c.method == "truncate":
        return [clipped(w, c.low, c.high) for w in weights]
    return [w if c.low <= w <= c.high else 0.0 for w in weights]


def has_drifted(row: Row, logprobs: list[Tensor], threshold: float) -> bool:
    """Whether the policy is more than ``threshold`` nats a token away (arXiv 2512.02556, section 3.1)."""
    return sum(b - new.item() for new, b in zip(logprobs, row.sampler, strict=True)) / len(logprobs) > threshold


def token_losses(o: Objective, row: Row, logprobs: list[Tensor], kl_coef: float) -> list[Tensor]:
    """w m L + kl_coef KL at each token of a row."""
    corrects = o.correction.method != "none"
    own = [new.item() for new in logprobs] if row.old is None else row.old
    old = own if corrects else row.sampler
    weights = sampler_weights(o.correction, own, row.sampler) if corrects else [1.0] * len(old)
    drifted = o.off_policy_threshold > 0 and has_drifted(row, logprobs, o.off_policy_threshold)
    losses = []
    for t, (new, r, a) in enumerate(zip(logprobs, ratios(o, logprobs, old), row.advantages, strict=True)):
        left_out = (drifted and a < 0) or (row.gradient_mask is not None and not row.gradient_mask[t])
        loss = new * 0 if left_out else -weights[t] * surrogate(o, r, new, a)
        if row.reference and o.kl_in == "loss":
            share = torch.exp(new - old[t]) if o.kl_weighted else 1
            loss = loss + kl_coef * share * kl(o.kl_estimator, new, row.reference[t])
        losses.append(loss)
    return losses


def step_loss(
    o: Objective,
    rows: list[Row],
    logprobs: list[list[Tensor]],
    entropies: list[list[Tensor]],
    kl_coef: float,
    entropy_coef: float,
    constant_length: int,
) -> Tensor:
    """The loss of an optimizer step over the rows that count and have a token; a constant denominator counts all rows."""
    counted = [n for n, row in enumerate(rows) if row.in_loss and row.sampler]
    by_row = [token_losses(o, rows[n], logprobs[n], kl_coef) for n in counted]
    tokens = sum(len(losses) for losses in by_row)
    bonus = entropy_coef * sum(sum(entropies[n]) for n in counted) / tokens
    if o.aggregation == "token":
        return sum(sum(losses) for losses in by_row) / tokens - bonus
    if o.aggregation == "constant":
        return sum(sum(losses) for losses in by_row) / (constant_length * len(rows)) - bonus
    return sum(sum(losses) / len(losses) for losses in by_row) / len(by_row) - bonus


# --- advantages --------------------------------------------------------------------------------------------------


def mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def group_baselines(baseline: str, scale: str, groups: list[list[float]]) -> list[list[float]]:
    """GRPO (arXiv 2402.03300), RLOO (2402.14740) and a phantom zero, divided by std + 1e-4; a group of one compares nothing."""
    everyone = mean_and_std([reward for group in groups for reward in group])[1]
    advantages = []
    for group in groups:
        members = [*group, 0.0] if baseline == "phantom_zero" else group
        if len(members) == 1:
            advantages.append([0.0])
            continue
        mean, std = mean_and_std(members)
        below = [mean] * len(group)
        if baseline == "leave_one_out":
            below = [(sum(group) - reward) / (len(group) - 1) for reward in group]
        divisor = {"group": std + 1e-4, "batch": everyone + 1e-4, "none": 1.0}[scale]
        advantages.append([(reward - b) / divisor for reward, b in zip(group, below, strict=True)])
    return advantages


def token_advantages(
    baseline: str,
    scale: str,
    group: int | list[int],
    rewards: list[float],
    penalties: list[list[float]],
    counted: list[bool],
) -> list[list[float]]:
    """Advantages of every sampled token; a row that does not count has zeros.

    ``group`` is the number of each row's group, or the rows of each group if all have as many and stand in order. The KL takes
    ``penalties`` off the reward at each token.
    """
    if baseline in ("batch", "none"):  # returns of tokens, REINFORCE++ (arXiv 2501.03262)
        returns = [[r - sum(paid[t:]) for t in range(len(paid))] for r, paid in zip(rewards, penalties, strict=True)]
        mean, divisor = 0.0, 1.0
        if baseline == "batch":
            mean, std = mean_and_std([value for row, counts in zip(returns, counted, strict=True) if counts for value in row])
            divisor = std + 1e-8 if scale == "batch" else 1.0
        found = [[(value - mean) / divisor for value in row] for row in returns]
    else:
        paid = [r - sum(row) for r, row in zip(rewards, penalties, strict=True)]
        numbers = [n // group for n in range(len(paid))] if isinstance(group, int) else group
        members = [[n for n, number in enumerate(numbers) if number == each] for each in sorted(set(numbers))]
        compared = group_baselines(baseline, scale, [[paid[n] for n in rows] for rows in members])
        by_row = {n: a for rows, values in zip(members, compared, strict=True) for n, a in zip(rows, values, strict=True)}
        found = [[by_row[n]] * len(row) for n, row in enumerate(penalties)]
    return [[a if counts else 0.0 for a in row] for row, counts in zip(found, counted, strict=True)]
