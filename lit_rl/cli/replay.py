"""``lit-rl replay FILE``: compute a failed step again, with the model of a config or of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lit_rl.cli.lightning_cli import CLI, one_line_errors
from lit_rl.cli.nested_help import expand_help
from lit_rl.cli.noise import quiet_start
from lit_rl.training.checkpoint_io import read_checkpoint
from lit_rl.training.failed_step import load_failed_step, replay


class Replay(CLI):
    """Builds the module of a run in one process and computes a failed step; takes no step and writes nothing.

    Args:
        file: a file that the run left.
    """

    def __init__(self, file: Path) -> None:
        self._failed = load_failed_step(file)
        super().__init__("validate")

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        # The file holds the micro-batches of all ranks.
        trainer = self.config["validate"].trainer
        trainer.strategy, trainer.devices, trainer.num_nodes, trainer.logger = "auto", 1, 1, False

    def _run_subcommand(self, subcommand: str) -> None:
        module, trainer, path = self.model, self.trainer, self.config[subcommand].ckpt_path
        trainer.strategy.connect(module)
        module.trainer = trainer
        module.configure_model()
        if path:
            module.load_state_dict(read_checkpoint(Path(path))["state_dict"], strict=module.strict_loading)
        device = trainer.strategy.root_device
        trainer.precision_plugin.convert_module(module.to(device))
        module.on_fit_start()
        # A critic that warms up has a loss of its own.
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self._failed.step
        with trainer.precision_plugin.forward_context():
            rank_zero_info("\n".join(replay(self._failed, module, device)))


def run_replay(args: list[str], classes: dict[str, str], file: Path) -> None:
    """Run ``replay``.

    Args:
        args: ``validate`` and its arguments, configs by path.
        classes: class that the arguments choose for each dotted key.
        file: the failed step.
    """
    sys.argv[1:] = expand_help(args, classes)
    quiet_start()
    with one_line_errors():
        Replay(file)
