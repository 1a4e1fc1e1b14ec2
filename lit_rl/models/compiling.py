"""Compiled policies: forward passes by ``torch.compile`` read memory fewer times, after a wait at the start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lit_rl.models.policy import Policy


def compile_policy(policy: Policy, decoding: bool = True) -> None:
    """Compile the learner's layers one by one, and the decoding step as a whole.

    Layers are alike, so the compiler works for the first one only. A layer's ``forward`` is compiled instead of the module,
    so that hooks (sharding, gradient checkpointing) stay outside.

    Args:
        policy: changed in place; copy it before.
        decoding: whether to compile the decoding step too; hooks of sharded weights would cut it into pieces.

    Raises:
        ValueError: without a C++ compiler, which torch.compile calls.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ValueError("model.policy.compile needs a C++ compiler and finds none; install g++ or write compile: false.")
    rank_zero_info("policy.compile: the first rollout and the first step wait for the compiler, some ten seconds each or more.")
    # Lengths differ from batch to batch. Without `dynamic` the first is compiled for itself, and the next one anew.
    for layer in decoder_layers(policy):
        layer.forward = torch.compile(layer.forward, dynamic=True)
    policy.compiled = True
    if not decoding:
        return
    if _decodes_on_plain_layers(policy):
        policy.compiled_step = torch.compile(policy.eager_step, dynamic=True)
    else:
        rank_zero_info("policy.compile: sampling stays uncompiled, since some layers have a window or a state of fixed size.")


def _decodes_on_plain_layers(policy: Policy) -> bool:
    """Whether the cache of every layer holds all keys: the decoding step is compiled for these layers alone."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=policy.causal_lm.config).layers)


def decoder_layers(policy: Policy) -> Iterator[nn.Module]:
    """The repeated layers, by the class names that transformers keeps for sharding."""
    names = policy.causal_lm._no_split_modules or set()
    return (module for module in policy.modules() if type(module).__name__ in names)
