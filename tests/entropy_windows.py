"""A tiny model whose entropies differ, and windows of random tokens for it."""

import numpy as np
from conftest import tiny_spec

from lit_rl.entropy.compute import window_entropies
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.randomness import seeded
from lit_rl.text.windows import Windows, slide

SHARP = {"initializer_range": 0.3}
"""Weights large enough that entropies differ."""


def sharp_spec(**options) -> PolicySpec:
    return tiny_spec(config={**SHARP, **options.pop("config", {})}, **options)


def sharp_policy(**options) -> Policy:
    """A policy as a module with seed 0 builds it."""
    spec = sharp_spec(**options)
    with seeded(0):
        return Policy(spec, load_tokenizer(spec))


def some_windows(count=400, size=20, seed=0, vocabulary=50) -> Windows:
    """Windows of random tokens of three documents."""
    ids = np.random.default_rng(seed).integers(3, vocabulary, count)
    return slide(ids, np.array([count // 3, count // 2, count]), size, 5, size - 5)


def all_entropies(policy, windows, **options):
    return np.concatenate([values for _, values in window_entropies(policy, windows, **options)])
