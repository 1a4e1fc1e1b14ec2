"""Rewards of tokens, GAE and the critic's loss as the papers write them: one token after another, in numbers and lists.

Nothing here knows how the library computes them; a row is a list with a number per sampled token, without padding.
"""

from __future__ import annotations

import math


def token_rewards(reward: float, penalties: list[float]) -> list[float]:
    """Minus the penalty at each token, and at the last token plus the reward (arXiv 1909.08593, section 2)."""
    return [-paid + (reward if t == len(penalties) - 1 else 0.0) for t, paid in enumerate(penalties)]


def generalized(rewards: list[float], values: list[float], behind: float, gamma: float, lam: float) -> list[float]:
    """``A_t = sum_l (gamma lam)^l delta_{t+l}`` (arXiv 1506.02438, eq. 16), the sum written out.

    ``behind`` is the value of the state after the last token: 0 if the completion ended.
    """
    following = [*values, behind][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


def whitened(rows: list[list[float]], counted: list[bool]) -> list[list[float]]:
    """Mean 0 and standard deviation 1 over all tokens of the rows that count; the others become 0."""
    everyone = [value for row, counts in zip(rows, counted, strict=True) if counts for value in row]
    mean = math.fsum(everyone) / len(everyone)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in everyone) / (len(everyone) - 1))
    return [
        [(value - mean) / (std + 1e-8) if counts else 0.0 for value in row] for row, counts in zip(rows, counted, strict=True)
    ]


def value_loss(value, before: float, target: float, clip: float):
    """``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2`` at one token, V a 0-D tensor."""
    plain = (value - target) * (value - target) / 2
    if clip == 0:
        return plain
    number = value.item()
    if number > before + clip:
        other = (before + clip - target) ** 2 / 2
    elif number < before - clip:
        other = (before - clip - target) ** 2 / 2
    else:
        return plain
    return plain if (number - target) ** 2 / 2 >= other else plain * 0 + other


def explained_variance(values: list[float], returns: list[float]) -> float:
    """``1 - Var(R - V) / Var(R)``."""

    def variance(numbers: list[float]) -> float:
        mean = math.fsum(numbers) / len(numbers)
        return math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)

    return 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(returns)
