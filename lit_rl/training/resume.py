"""Resuming: parts that a Trainer needs for it, states of all ranks' training streams, and guards against another model."""

from __future__ import annotations

import json
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rl.models.policy import Policy
from lit_rl.text.vocabulary import vocabulary_fingerprint
from lit_rl.training.checkpoint_io import AtomicCheckpointIO
from lit_rl.training.continuation import keep_whole
from lit_rl.training.interruption import Interruption

FREE_IN_EVALUATION = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures",
                      "_attn_implementation", "attn_implementation", "pad_token_id", "bos_token_id", "eos_token_id",
                      "base_model_name_or_path", "inference_mode", "revision")  # fmt: skip
"""Keys of a model's config that change no logit, or only their rounding."""


def make_resumable(trainer: pl.Trainer) -> Interruption:
    """Give a Trainer, once, all that lets its run be killed at any moment; a checkpoint plugin that the user chose stays."""
    strategy, callbacks = trainer.strategy, trainer.callbacks  # type: ignore[attr-defined]
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
    keep_whole(trainer)
    for callback in callbacks:
        if isinstance(callback, Interruption):
            return callback
    # First of all: its state decides what a signal may break off.
    callbacks.insert(0, Interruption())
    return callbacks[0]


def collect_states(state: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """Stream states of all ranks, by rank; every rank must call."""
    if ranks == 1:
        return [state]
    # Lightning saves the loader state of rank 0 alone, and would give it to every rank.
    states: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    return states


def state_of_rank(states: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    """Stream state of one rank, from the states in a checkpoint.

    Raises:
        ValueError: if the checkpoint was written by another number of processes.
    """
    if len(states) != ranks:
        raise ValueError(
            f"the checkpoint was written by {len(states)} process(es) and this run has {ranks}; "
            "resume with as many, or start a new run from the exported model."
        )
    return states[rank]


def describe_models(policies: list[Policy], tokenizer: PreTrainedTokenizerBase) -> str:
    """Configs of the models, their adapters, and the vocabulary, as JSON: what decides a logit beside the weights."""
    described: dict[str, Any] = {"vocabulary": vocabulary_fingerprint(tokenizer)}
    for number, policy in enumerate(policies):
        # The learner is first, a critic and the KL reference come after it.
        described |= {f"model {number + 1}": _plain(policy.causal_lm.config.to_dict())}
        if policy.adapted:
            described |= {f"adapter {number + 1}": _plain(policy.model.peft_config["default"].to_dict())}
    return json.dumps(described, default=str)


def _plain(value: Any) -> Any:
    """A config without the keys that are free, its sets in order."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in FREE_IN_EVALUATION}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value


def check_checkpoint(checkpoint: dict[str, Any], weights: dict[str, Tensor], described: str, *, resuming: bool) -> None:
    """Refuse a checkpoint of another model; to resume a run, also one without the state of the optimizer.

    Args:
        checkpoint: the checkpoint.
        weights: weights of this run's module.
        described: this run's models, from `describe_models`.
        resuming: whether the run goes on, or is only evaluated.

    Raises:
        ValueError: with the first weight or config key that differs.
    """
    if resuming and "optimizer_states" not in checkpoint:
        raise ValueError(
            "the checkpoint holds weights without the optimizer's state (ModelCheckpoint with save_weights_only), so no run "
            "can go on from it; evaluate it, or start a new run from the exported model."
        )
    check_same_model(weights, checkpoint.get("state_dict") or {})
    own, saved = json.loads(described), json.loads(checkpoint.get("models", described))
    # What one side has alone is a matter of options, such as a KL penalty and its reference model.
    here, there = (_flat({name: models[name] for name in own.keys() & saved.keys()}) for models in (own, saved))
    changed = [key for key in here | there if here.get(key) != there.get(key)]
    if changed:
        differences = "; ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in changed[:3])
        raise ValueError(
            f"the checkpoint is of another model, though its weights have the same shapes: {differences}; "
            "set model.policy, and model.critic, as they were when it was written."
        )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: item for part, inner in value.items() for name, item in _flat(inner, f"{key}.{part}".lstrip(".")).items()}
    return {key: value}


def check_same_model(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Refuse the weights of another model; without weights on either side there is nothing to compare.

    Raises:
        ValueError: for the first weight that is missing on one side, or has another shape.
    """
    if not (own and saved):
        return
    for name in own | saved:
        # A sharded weight (DTensor) has the shape of the whole weight, so sharded and whole states compare.
        here, there = _shape(own.get(name)), _shape(saved.get(name))
        if here != there:
            raise ValueError(
                f"the checkpoint is of another model: {name} is {there} there and {here} here; "
                "set model.policy, and model.critic, as they were when it was written."
            )


def _shape(weight: Tensor | None) -> str:
    return "missing" if weight is None else str(tuple(weight.shape))
