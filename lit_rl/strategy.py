"""Sharded training: the ``fsdp2`` strategy, how a policy is sharded, and its weights gathered for a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lit_rl.compiling import decoder_layers
from lit_rl.policy import Policy


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) over all processes, whole checkpoints: ``--trainer.strategy fsdp2``.

    Lightning's own default gives every process the same data and shards nothing.

    Args:
        kwargs: what Lightning's strategy takes, but for the sizes.
    """

    strategy_name = "fsdp2"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def register_strategies() -> None:
    """Make ``fsdp2`` known to Lightning by name."""
    if "fsdp2" not in StrategyRegistry.available_strategies():
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all processes")


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Shard a policy in place, layer by layer, over the mesh's data-parallel processes."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    data_mesh = mesh["data_parallel"]
    for layer in decoder_layers(policy):
        fully_shard(layer, mesh=data_mesh)
    if policy.value_head is not None:
        fully_shard(policy.value_head, mesh=data_mesh)  # by itself: it is in a precision of its own
    fully_shard(policy, mesh=data_mesh)
    for entrance in ("prefill", "decode", "score", "score_batch", "values", "score_with_values"):
        register_fsdp_forward_method(policy, entrance)


@contextmanager
def gathered_weights(policies: list[Policy]) -> Iterator[None]:
    """Hold whole weights on every rank meanwhile, so that ranks may run different numbers of forwards."""
    sharded = [module for policy in policies for module in policy.modules() if _is_sharded(module)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
        module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()  # type: ignore[operator]
            module.set_reshard_after_forward(True, recurse=False)  # type: ignore[operator]


def _is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
