"""Trainer strategy ``fsdp2``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) over all processes, whole checkpoints: ``--trainer.strategy fsdp2``.

    Lightning's strategy by default gives every process the same data and shards nothing.

    Args:
        kwargs: arguments of Lightning's ``ModelParallelStrategy``, except sizes.
    """

    strategy_name = "fsdp2"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        # Only here: the Trainer sets nodes and devices after the constructor, and the base class makes the mesh of them.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def register_strategies() -> None:
    """Register ``fsdp2`` with Lightning."""
    if "fsdp2" not in StrategyRegistry.available_strategies():
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all processes")
