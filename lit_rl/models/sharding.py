"""Sharded policies (FSDP2): shards a policy layer by layer, and unshards its weights for a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lit_rl.models.compiling import decoder_layers
from lit_rl.models.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Shard a policy in place, layer by layer, over the mesh's data-parallel processes."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    data_mesh = mesh["data_parallel"]
    for layer in decoder_layers(policy):
        fully_shard(layer, mesh=data_mesh)
    if policy.value_head is not None:
        fully_shard(policy.value_head, mesh=data_mesh)  # alone: a sharded unit has one precision
    # Last: this unit takes the weights that no other unit has, embeddings and head among them.
    fully_shard(policy, mesh=data_mesh)
    # FSDP2 gathers weights around `forward` only, unless it is told of other methods.
    for entrance in ("prefill", "decode_step", "score", "score_sequences", "values", "score_with_values"):
        register_fsdp_forward_method(policy, entrance)


@contextmanager
def unsharded_weights(policies: list[Policy]) -> Iterator[None]:
    """Hold whole weights on every rank inside the block, so that ranks may run different numbers of forwards."""
    sharded = [module for policy in policies for module in policy.modules() if _is_sharded(module)]
    for module in sharded:
        # Otherwise the first forward inside the block would free the weights at its end.
        module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
        module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()  # type: ignore[operator]
            # As FSDP2 begins: the root keeps its weights after the forward pass, since the backward pass starts with them.
            module.set_reshard_after_forward(module not in policies, recurse=False)  # type: ignore[operator]


def _is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
