"""Export of a policy as a Hugging Face folder, which transformers and the next run's ``policy.pretrained`` open."""

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
    """Weights of a policy, unsharded and on the CPU."""

    model: dict[str, Tensor]
    value_head: dict[str, Tensor]
    """Empty without a value head."""


def whole_weights(policy: Policy) -> WholeWeights:
    """Weights of a policy, for rank 0; every rank must call, since sharded weights are gathered."""
    head = {} if policy.value_head is None else _whole(policy.value_head)
    return WholeWeights(_whole(policy.model), head)


def _whole(module: nn.Module) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(module, options=options))  # type: ignore[arg-type]


def export_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: WholeWeights) -> None:
    """Write model, tokenizer and value head; the folder is replaced whole or not at all.

    An adapter is saved alone if its base can be opened by name or folder. On a base from scratch, or a base that an earlier
    adapter was merged into, it is merged, since nothing could open it alone.

    Args:
        policy: the policy.
        tokenizer: its tokenizer.
        folder: path of the export.
        weights: from `whole_weights`.
    """
    base = policy.spec.pretrained
    with new_folder(folder) as new:
        if policy.spec.lora and (base is None or is_adapter(base)):
            _merged(policy, weights.model).save_pretrained(new)
        else:
            policy.model.save_pretrained(new, state_dict=dict(weights.model))  # a copy: save_pretrained empties the dict
        if weights.value_head:
            save_value_head(weights.value_head, new)
        tokenizer.save_pretrained(new)


@torch.no_grad()
def _merged(policy: Policy, weights: dict[str, Tensor]) -> Any:
    """A merged copy of the model; merging and unmerging in place would round the weights that training goes on with."""
    model = copy.deepcopy(policy.model).cpu()
    model.load_state_dict(weights)
    return model.merge_and_unload()
