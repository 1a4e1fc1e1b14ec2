"""LightningCLI over the classes of this package: ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError

import lit_rl.algorithms
import lit_rl.callbacks
import lit_rl.datamodules  # noqa: F401  (their classes become known by short name)
from lit_rl.algorithms.module import PolicyModule
from lit_rl.cli.arguments import Parser
from lit_rl.cli.configs import last_checkpoint
from lit_rl.cli.errors import explain
from lit_rl.datamodules import PromptDataModule
from lit_rl.files import write_text
from lit_rl.training.strategy import register_strategies

FIXED_ON_RESUME = ("seed_everything", "model.class_path", "data", "model.init_args.policy", "model.init_args.optimizer",
                   "model.init_args.schedule", "model.init_args.group_size", "model.init_args.epochs",
                   "model.init_args.minibatches", "trainer.accumulate_grad_batches")  # fmt: skip
"""Config keys that a resumed run must keep: the state in the checkpoint depends on them and would silently win."""

FREE_ON_RESUME = ("data.init_args.eval_batch_size", "data.init_args.num_workers")
"""Keys below the fixed ones that change no sample."""


class RunConfig(SaveConfigCallback):
    """Keeps the config beside the run and in its checkpoints, and guards a resumed run against silent changes."""

    def save_config(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for logger in trainer.loggers[1:]:  # the first one writes CSV, and the config lies beside the CSV file anyway
            logger.log_hyperparams(flatten(yaml.safe_load(self._dump())))

    def _dump(self) -> str:
        # Nulls too: null and absent differ if a default is not null.
        return self.parser.dump(self.config, skip_none=False)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        # As text: `torch.load(weights_only=True)` refuses the parser's Namespace.
        checkpoint["config"] = self._dump()

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Evaluation may change all options: it resumes neither stream nor optimizer.
        if "config" not in checkpoint or not trainer.training:
            return
        old = flatten(yaml.safe_load(checkpoint["config"]))
        new = flatten(yaml.safe_load(self._dump()))
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key != "ckpt_path"]
        for key in changed:
            # As prefixes: `data` fixes every key below it.
            if key.startswith(FIXED_ON_RESUME) and key not in FREE_ON_RESUME:
                raise ValueError(
                    f"{key} was {old.get(key)!r} in the checkpoint's run and cannot become {new.get(key)!r} on resuming; "
                    "leave it, or start a new run from the exported model."
                )
            rank_zero_info(f"Resuming with {key}: {old.get(key)!r} -> {new.get(key)!r}")


class CLI(LightningCLI):
    """LightningCLI over every algorithm, data source and callback of this package."""

    def __init__(self) -> None:
        super().__init__(
            PolicyModule,
            PromptDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            # Without a logger the config lies in the run's own folder, where an earlier run may have left one.
            save_config_kwargs={"overwrite": True},
            # A whole validation before the first step is the baseline; metrics of every step go to the logs.
            trainer_defaults={"num_sanity_val_steps": -1, "log_every_n_steps": 1},
            seed_everything_default=1,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-rl"},
            # The algorithm builds its own optimizer from its options.
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyperparameters override flags silently; `RunConfig` compares them instead."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that cannot be opened before anything is built."""
        config = self.config[self.subcommand]
        path = config.get("ckpt_path")
        if path == "last":
            # Lightning looks only where this run would write, and every run writes to a new folder.
            last = last_checkpoint(Path(config.trainer.default_root_dir or "."))
            if last is None and self.subcommand != "fit":
                raise ValueError("ckpt_path: there is no last.ckpt below trainer.default_root_dir.")
            # Left as `last`, fit warns and starts anew: one command begins a run and resumes it.
            config["ckpt_path"] = path if last is None else str(last)
        elif path and path not in ("best", "hpc") and "://" not in path:
            if not Path(path).exists():
                raise ValueError(f"ckpt_path: there is no checkpoint {path!r}.")
            # A zip has its directory at the end, so a file that was cut off is not one. A sharded checkpoint is a folder.
            if Path(path).is_file() and not zipfile.is_zipfile(path):
                raise ValueError(f"ckpt_path: {path!r} is not a checkpoint, or was cut off.")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A Trainer that logs all metrics as CSV in the run's folder, beside the loggers that the config names."""
        config = self._get(self.config_init, "trainer")
        named = config.get("logger")
        if named is not False:
            root = config.get("default_root_dir") or "."
            extra: list[Logger] = named if isinstance(named, list) else [named] if isinstance(named, Logger) else []
            # CSV first: the first logger's folder is the run's, and pipelines read their curves from it.
            kwargs["logger"] = [CSVLogger(root, name="logs"), *extra]
        if config.get("fast_dev_run"):
            # ModelCheckpoint saves in a debug run too, and the file would pass for the last checkpoint of the real run.
            kwargs["callbacks"] = [each for each in config.get("callbacks") or [] if not isinstance(each, ModelCheckpoint)]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Write the greedy completions of the test problems to ``predictions.jsonl``."""
        # Each rank writes its own problems: rows stay on the rank that answered them.
        batches = self.trainer.predict(**kwargs) or []
        rows = [json.dumps(row) for batch in batches for row in batch]
        rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.default_root_dir) / f"predictions{rank}.jsonl"
        write_text(path, "".join(row + "\n" for row in rows))
        rank_zero_info(f"{len(rows)} predictions in {path}")


class ArgumentCheck(CLI):
    """Parses its arguments and runs nothing."""

    # Seeding would announce a seed for each stage that is checked.
    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run_command(args: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: the command and its arguments, configs by path.
    """
    # Not as an argument: processes that a strategy launches read the command line too.
    sys.argv[1:] = args
    with _one_line_errors():
        CLI()


def check_arguments(args: list[str]) -> None:
    """Parse the arguments of a run, configs by path.

    Raises:
        ValueError: for wrong ones.
    """
    given = sys.argv[1:]
    sys.argv[1:] = args
    try:
        with _one_line_errors():
            ArgumentCheck()
    finally:
        sys.argv[1:] = given


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the libraries' errors about wrong input into ValueErrors, for callers that import no library."""
    register_strategies()
    try:
        yield
    except (MisconfigurationException, SafetensorError) as error:
        raise ValueError(explain(error)) from error


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(config, dict) or not config:
        # An empty dict is a value: a section that becomes empty is a change.
        return {prefix: config}
    return {name: value for key, item in config.items() for name, value in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}
