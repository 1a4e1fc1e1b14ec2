"""A policy as a Hugging Face folder, which transformers and the next run's ``policy.pretrained`` open."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedTokenizerBase

from lit_rl.files import new_folder
from lit_rl.models.loading import is_adapter
from lit_rl.models.policy import Policy
from lit_rl.models.value_head import save_value_head


class WholeWeights(NamedTuple):
    """A policy's weights, unsharded and on the CPU."""

    model: dict[str, Tensor]
    value_head: dict[str, Tensor]
    """Empty without one."""


def whole_weights(policy: Policy) -> WholeWeights:
    """The policy's weights; every rank must call, rank 0 gets them."""
    head = {} if policy.value_head is None else _whole(policy.value_head)
    return WholeWeights(_whole(policy.model), head)


def _whole(module: nn.Module) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(module, options=options))  # type: ignore[arg-type]


def export_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: WholeWeights) -> None:
    """Write model, tokenizer and value head; the folder is replaced as a whole or not at all.

    An adapter is saved as one where its base can be opened by name or folder; on a base from scratch, or one that had
    merged an earlier adapter, it is merged, since nothing could open it alone.

    Args:
        policy: the policy.
        tokenizer: its tokenizer.
        folder: where to.
        weights: from `whole_weights`.
    """
    base = policy.spec.pretrained
    with new_folder(folder) as new:
        if policy.spec.lora and (base is None or is_adapter(base)):
            _merged(policy, weights.model).save_pretrained(new)
        else:
            policy.model.save_pretrained(new, state_dict=dict(weights.model))  # it empties the dict that it is given
        if weights.value_head:
            save_value_head(weights.value_head, new)
        tokenizer.save_pretrained(new)


@torch.no_grad()
def _merged(policy: Policy, weights: dict[str, Tensor]) -> Any:
    """A merged copy; merging and unmerging in place would round the weights that training goes on with."""
    model = copy.deepcopy(policy.model).cpu()
    model.load_state_dict(weights)
    return model.merge_and_unload()
