"""LightningCLI over the classes of this package: ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse.typing import restricted_number_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from safetensors import SafetensorError

import lit_rl.algorithms
import lit_rl.callbacks
import lit_rl.datamodules  # noqa: F401  (their classes become known by short name)
from lit_rl.algorithms.module import PolicyModule
from lit_rl.callbacks import Progress, RolloutWriter
from lit_rl.cli.arguments import Parser
from lit_rl.cli.dry_run import DRY_RUN, DryRun, NoLog, dry_run
from lit_rl.cli.errors import explain
from lit_rl.cli.lock import locked
from lit_rl.cli.nested_help import expand_help
from lit_rl.cli.noise import quiet_start
from lit_rl.cli.own_classes import check_config
from lit_rl.cli.run_folder import RunFolder, find_checkpoint, recorded
from lit_rl.datamodules import PromptDataModule
from lit_rl.files import write_text
from lit_rl.options import first_line
from lit_rl.training.strategy import register_strategies

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="Number that seeds a generator.")

FIXED_ON_RESUME = ("seed_everything", "model.class_path", "data", "model.init_args.policy", "model.init_args.optimizer",
                   "model.init_args.schedule", "model.init_args.group_size", "model.init_args.epochs",
                   "model.init_args.minibatches", "trainer.accumulate_grad_batches")  # fmt: skip
"""Config keys that a resumed run must keep: the state in the checkpoint depends on them and would silently win."""

MAX_DEVICES = 4096
"""More than any machine has."""

FREE_ON_RESUME = ("data.init_args.eval_batch_size", "data.init_args.num_workers")
"""Keys below the fixed ones that change no sample."""


class RunConfig(SaveConfigCallback):
    """Keeps the config beside the run and in its checkpoints, and guards a resumed run against silent changes."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # An evaluation without a logger writes nothing, so that it runs beside a folder that is read-only.
        dry = any(isinstance(each, DryRun) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if not dry and (trainer.loggers or stage == "fit"):
            super().setup(trainer, module, stage)

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
    """LightningCLI over every algorithm, data source and callback of this package.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``; the rest is read from ``sys.argv``.
        held: keeps the lock of the run's folder.
        dry: stop before the first step, and keep nothing.
    """

    def __init__(self, command: str, held: ExitStack | None = None, dry: bool = False) -> None:
        self._command, self._held, self._dry = command, held or ExitStack(), dry
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # A parser takes a third of a second to build: one instead of four.
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning's own takes true, which means another seed for each of the options that are linked to it.
        parser.add_argument("--seed_everything", type=Seed, default=1, help="Seed of everything random.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self.command_line())
        check_config(json.loads(json.dumps(self.config.as_dict(), default=str))[self._command])

    def command_line(self) -> list[str]:
        """The command and its arguments, as the parser takes them."""
        # The parser does not know this flag; it stays in `sys.argv` for the processes of other ranks.
        return [arg for arg in sys.argv[1:] if arg != DRY_RUN]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyperparameters override flags silently; `RunConfig` compares them instead."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that cannot be opened before anything is built."""
        config = self.config[self.subcommand]
        root = config.trainer.default_root_dir or "."
        # By the first rank alone: the others work in the same folder.
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        if self._command == "fit" and not config.trainer.fast_dev_run and first:
            self._held.enter_context(locked(Path(root)))
        config["ckpt_path"] = find_checkpoint(self._command, config.get("ckpt_path"), root)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A Trainer that logs all metrics as CSV in the run's folder, beside the loggers that the config names."""
        config = self._get(self.config_init, "trainer")
        resumed = self._get(self.config_init, "ckpt_path") if self.subcommand == "fit" else None
        run = RunFolder(config.get("default_root_dir") or ".", resumed)
        named = config.get("logger")
        if self._dry:
            kwargs["logger"] = NoLog(run.root)
        elif named is not False:
            kwargs["logger"] = run.loggers(named if isinstance(named, list) else [named] if isinstance(named, Logger) else [])
        callbacks = [*(config.get("callbacks") or []), run]
        if config.get("enable_progress_bar") is False:
            callbacks = [each for each in callbacks if not isinstance(each, ProgressBar)]
        elif not any(isinstance(each, ProgressBar) for each in callbacks):
            callbacks.append(Progress())
        if config.get("fast_dev_run"):
            # ModelCheckpoint saves in a debug run too, and the file would pass for the last checkpoint of the real run.
            callbacks = [each for each in callbacks if not isinstance(each, ModelCheckpoint)]
        elif config.get("enable_checkpointing") is not False and not any(isinstance(e, ModelCheckpoint) for e in callbacks):
            callbacks.append(ModelCheckpoint(save_last=True))  # after each validation
        if self._dry:
            callbacks.append(DryRun())
        devices = str(config.get("devices"))
        # Lightning makes a list of them first, as long as memory lasts.
        if devices.isdecimal() and int(devices) > MAX_DEVICES:
            raise ValueError(f"trainer.devices is {devices}; write the number of devices of one machine.")
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        # Lightning's way to refuse some values, such as a number of devices; nothing but options is read there.
        except TypeError as error:
            raise ValueError(f"trainer: {first_line(error)}") from error

    def fit(self, **kwargs: Any) -> None:
        """Train, and leave ``run.json`` in the run's folder."""
        if self._dry:
            dry_run(self.trainer, **kwargs)
            return
        with recorded(self.trainer):
            self.trainer.fit(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Write the greedy completions of the test problems to ``predictions.jsonl``, or record rollouts."""
        root = Path(self.trainer.default_root_dir)
        if any(isinstance(each, RolloutWriter) for each in self.trainer.callbacks):  # type: ignore[attr-defined]
            if self.trainer.is_global_zero:
                self._held.enter_context(locked(root))
            self.trainer.predict(**kwargs | {"return_predictions": False})
            return
        # Each rank writes its own problems: rows stay on the rank that answered them.
        batches = self.trainer.predict(**kwargs) or []
        rows = [json.dumps(row) for batch in batches for row in batch]
        rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = root / f"predictions{rank}.jsonl"
        write_text(path, "".join(row + "\n" for row in rows))
        rank_zero_info(f"{len(rows)} predictions in {path}")


class ArgumentCheck(CLI):
    """Parses its arguments and runs nothing."""

    # Seeding would announce a seed for each stage that is checked.
    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run_command(args: list[str], classes: dict[str, str], dry: bool = False) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: the command and its arguments, configs by path.
        classes: class that the arguments choose for each dotted key.
        dry: stop before the first step.
    """
    # Not as an argument: processes that a strategy launches read the command line too.
    sys.argv[1:] = [*expand_help(args, classes), *([DRY_RUN] if dry else [])]
    quiet_start()
    with ExitStack() as held, one_line_errors():
        CLI(args[0], held, dry)


def check_arguments(args: list[str]) -> None:
    """Parse the arguments of a run, configs by path.

    Raises:
        ValueError: for wrong ones.
    """
    given = sys.argv[1:]
    sys.argv[1:] = args
    try:
        with one_line_errors():
            ArgumentCheck(args[0])
    finally:
        sys.argv[1:] = given


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the libraries' errors about wrong input into ValueErrors, for callers that import no library."""
    register_strategies()
    try:
        yield
    except (MisconfigurationException, SafetensorError) as error:
        raise ValueError(explain(error)) from error
    except Exception as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise ValueError(
                f"a process that reads data has died ({first_line(error)}); often memory ran out: lower data.num_workers."
            ) from error
        # By name: importing wandb takes seconds.
        if type(error).__module__.startswith("wandb."):
            raise ValueError(f"W&B: {explain(error)}; WANDB_MODE=offline in the environment keeps the run here.") from error
        if type(error) is ImportError and str(error).startswith("Install "):  # fsspec's, about a remote folder
            raise ValueError(explain(error)) from error
        raise


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(config, dict) or not config:
        # An empty dict is a value: a section that becomes empty is a change.
        return {prefix: config}
    return {name: value for key, item in config.items() for name, value in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}
