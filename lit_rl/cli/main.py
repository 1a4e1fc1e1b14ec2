"""The command line: ``lit-rl fit | validate | test | predict`` by LightningCLI, and ``lit-rl pipeline``.

Classes go by their short names, configs by path or by the name of one that comes with the package, and what the user
got wrong is said in one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import json
import sys
import zipfile
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
from lit_rl.cli.arguments import HelpFormatter, Parser, explain, resolve_configs
from lit_rl.cli.configs import last_checkpoint, suggestion
from lit_rl.datamodules import PromptDataModule
from lit_rl.files import write_text
from lit_rl.training.strategy import register_strategies

FIXED_ON_RESUME = ("seed_everything", "model.class_path", "data", "model.init_args.policy", "model.init_args.optimizer",
                   "model.init_args.schedule", "model.init_args.group_size", "model.init_args.epochs",
                   "model.init_args.minibatches", "trainer.accumulate_grad_batches")  # fmt: skip
"""Config keys that a resumed run must keep: the checkpoint's state was made with them and would silently win."""

FREE_ON_RESUME = ("data.init_args.eval_batch_size", "data.init_args.num_workers")
"""Keys below those that change no sample."""

DESCRIPTION = """Reinforcement learning for language models on PyTorch Lightning.

  lit-rl fit --config CONFIG [--KEY VALUE ...]      train; `lit-rl fit --help` lists the keys
  lit-rl validate|test|predict --config CONFIG      evaluate, or write predictions.jsonl
  lit-rl pipeline FILE [--folder DIR]               several runs in a row, resumed where they stopped

A CONFIG is a file or the name of one that comes with the package; later ones and flags change earlier ones.
`lit-rl fit --model.help GRPO` and `lit-rl fit --data.help Arithmetic` explain a class; --debug shows tracebacks."""


class RunConfig(SaveConfigCallback):
    """Keeps the config beside the run and in its checkpoints, and guards a resumed run against silent changes."""

    def save_config(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for logger in trainer.loggers[1:]:  # the first one writes CSV, beside which the config lies anyway
            logger.log_hyperparams(flatten(yaml.safe_load(self._dump())))

    def _dump(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self._dump()

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "config" not in checkpoint or not trainer.training:
            return
        old = flatten(yaml.safe_load(checkpoint["config"]))
        new = flatten(yaml.safe_load(self._dump()))
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key != "ckpt_path"]
        for key in changed:
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
            save_config_kwargs={"overwrite": True},
            # A whole validation before the first step is the baseline; figures of every step go to the logs.
            trainer_defaults={"num_sanity_val_steps": -1, "log_every_n_steps": 1},
            seed_everything_default=1,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-rl", "description": DESCRIPTION, "formatter_class": HelpFormatter},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyperparameters override flags silently; `RunConfig` compares them instead."""

    def before_instantiate_classes(self) -> None:
        """A checkpoint that cannot be opened is refused before anything is built."""
        config = self.config[self.subcommand]
        path = config.get("ckpt_path")
        if path == "last":
            # Lightning looks only where this run would write, and every run writes to a new folder.
            last = last_checkpoint(Path(config.trainer.default_root_dir or "."))
            if last is None and self.subcommand != "fit":
                raise ValueError("ckpt_path: there is no last.ckpt below trainer.default_root_dir.")
            config["ckpt_path"] = path if last is None else str(last)
        elif path and path not in ("best", "hpc") and "://" not in path:
            if not Path(path).exists():
                raise ValueError(f"ckpt_path: there is no checkpoint {path!r}.")
            if Path(path).is_file() and not zipfile.is_zipfile(path):
                raise ValueError(f"ckpt_path: {path!r} is no checkpoint, or was cut off.")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A CSV log of every figure in the run's folder, beside the loggers that the config names."""
        config = self._get(self.config_init, "trainer")
        named = config.get("logger")
        if named is not False:
            root = config.get("default_root_dir") or "."
            extra: list[Logger] = named if isinstance(named, list) else [named] if isinstance(named, Logger) else []
            kwargs["logger"] = [CSVLogger(root, name="logs"), *extra]
        if config.get("fast_dev_run"):
            # Lightning's saves one all the same, which would pass for the last checkpoint of the real run.
            kwargs["callbacks"] = [each for each in config.get("callbacks") or [] if not isinstance(each, ModelCheckpoint)]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Write the greedy completions of the test problems to ``predictions.jsonl``."""
        batches = self.trainer.predict(**kwargs) or []
        rows = [json.dumps(row) for batch in batches for row in batch]
        rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.default_root_dir) / f"predictions{rank}.jsonl"
        write_text(path, "".join(row + "\n" for row in rows))
        rank_zero_info(f"{len(rows)} predictions in {path}")


class ArgumentCheck(CLI):
    """Parses its arguments, which must be right, and runs nothing."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def check_arguments(args: list[str]) -> None:
    """Parse the arguments of a run.

    Raises:
        ValueError: for wrong ones.
    """
    given = sys.argv[1:]
    sys.argv[1:] = resolve_configs(args)
    try:
        ArgumentCheck()
    finally:
        sys.argv[1:] = given


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {name: value for key, item in config.items() for name, value in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}


def main(args: list[str] | None = None) -> None:
    """Entry point of ``lit-rl``."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        run(args)
    except (ValueError, OSError, ModuleNotFoundError, MisconfigurationException, SafetensorError) as error:
        if debug:
            raise
        sys.exit(f"lit-rl: {explain(error)}")


def run(args: list[str]) -> None:
    """Run one command."""
    register_strategies()
    commands = [*CLI.subcommands(), "pipeline"]
    if not args:
        raise ValueError(f"write lit-rl and one of {', '.join(commands)}; lit-rl --help explains them.")
    if not args[0].startswith("-") and args[0] not in commands:
        raise ValueError(f"unknown command {args[0]!r}; write one of {', '.join(commands)}.{suggestion(args[0], commands)}")
    if args[0] == "pipeline":
        from lit_rl.cli.pipeline import main as pipeline

        return pipeline(args[1:], check_arguments)
    # Not as an argument: processes that a strategy launches read the command line too.
    sys.argv[1:] = resolve_configs(args)
    CLI()
    return None


if __name__ == "__main__":
    main()
