"""The command line: ``lit-rl fit | validate | test | predict`` by LightningCLI, and ``lit-rl pipeline``.

Classes go by their short names, configs by path or by the name of one that comes with the package, and what the user
got wrong is said in one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info

import lit_rl.algorithms
import lit_rl.callbacks
import lit_rl.datamodules  # noqa: F401  (their classes become known by short name)
from lit_rl.datamodules import PromptDataModule
from lit_rl.evaluation import Evaluation
from lit_rl.files import find_config, suggestion, write_text
from lit_rl.loading import LoRASpec, PolicySpec
from lit_rl.module import PolicyModule
from lit_rl.sampling.sampler import Sampler
from lit_rl.schedule import Schedule
from lit_rl.strategy import register_strategies
from lit_rl.tasks.infix import Grammar

FIXED_ON_RESUME = ("seed_everything", "model.class_path", "data", "model.init_args.policy", "model.init_args.optimizer",
                   "model.init_args.schedule", "model.init_args.group_size", "model.init_args.epochs",
                   "model.init_args.minibatches", "trainer.accumulate_grad_batches")  # fmt: skip
"""Config keys that a resumed run must keep: the checkpoint's state was made with them and would silently win."""


OPTION_CLASSES = (PolicySpec, LoRASpec, Sampler, Schedule, Evaluation, Grammar)
"""What stands behind nested options, beside the algorithms and data modules."""


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(one_line(message, self))


class RunConfig(SaveConfigCallback):
    """Keeps the config beside the run and in its checkpoints, and guards a resumed run against silent changes."""

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.parser.dump(self.config, skip_none=False)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "config" not in checkpoint or not trainer.training:
            return
        old = flatten(yaml.safe_load(checkpoint["config"]))
        new = flatten(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key != "ckpt_path"]
        for key in changed:
            if key.startswith(FIXED_ON_RESUME):
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
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyperparameters override flags silently; `RunConfig` compares them instead."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A CSV log of every figure in the run's folder, beside the loggers that the config names."""
        config = self._get(self.config_init, "trainer")
        named = config.get("logger")
        if named is not False:
            root = config.get("default_root_dir") or "."
            extra: list[Logger] = named if isinstance(named, list) else [named] if isinstance(named, Logger) else []
            kwargs["logger"] = [CSVLogger(root, name="logs"), *extra]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Write the greedy completions of the test problems to ``predictions.jsonl``."""
        batches = self.trainer.predict(**kwargs) or []
        rows = [json.dumps(row) for batch in batches for row in batch]
        rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.default_root_dir) / f"predictions{rank}.jsonl"
        write_text(path, "".join(row + "\n" for row in rows))
        rank_zero_info(f"{len(rows)} predictions in {path}")


def resolve_configs(args: list[str]) -> list[str]:
    """Replace config names behind ``--config`` and ``-c`` by paths."""
    resolved = list(args)
    for place, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("--config", "-c") and equals:
            resolved[place] = f"{flag}={find_config(value)}"
        elif place and args[place - 1] in ("--config", "-c"):
            resolved[place] = find_config(arg)
    return resolved


def one_line(message: str, parser: LightningArgumentParser | None = None) -> str:
    """What is wrong, out of a parser's message about every type that an argument did not have."""
    text = " ".join(str(message).split())
    unknown = re.search(r"(?:Key|key|Option|option) ['\"]?([\w.+]+)['\"]? is not (?:expected|accepted)", text)
    unknown = unknown or re.search(r"[Uu]nrecognized arguments: --([\w.+]+)", text)
    if unknown:
        key = unknown.group(1)
        return f"unknown option {key!r}.{suggestion(key.split('.')[-1], known_options(parser))}"
    if "Union subtypes" not in text:
        return text
    where = "".join(f"{key}: " for key in re.findall(r'Parser key "([\w.]+)"', text)[:1])
    reasons = re.split(r" - |Errors: ", re.sub(r" Given value.*", "", text))
    useful = [reason for reason in reasons if not re.search(r"Union subtypes|NoneType|^Parser key \S+$", reason)]
    return where + "; ".join(useful)


def known_options(parser: LightningArgumentParser | None) -> list[str]:
    """Names that a misspelt option may have meant: parts of the parser's options, and arguments of this package's classes."""
    names = {name for action in (parser._actions if parser else []) for name in action.dest.split(".")}
    for cls in (*_subclasses(PolicyModule), *_subclasses(PromptDataModule), *OPTION_CLASSES):
        names |= set(inspect.signature(cls).parameters)
    return sorted(names)


def _subclasses(cls: type) -> list[type]:
    found: list[type] = [cls]
    child: type
    for child in cls.__subclasses__():
        found += _subclasses(child)
    return found


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
    except (ValueError, OSError, MisconfigurationException) as error:
        if debug:
            raise
        sys.exit(f"lit-rl: {one_line(str(error))}")


def run(args: list[str]) -> None:
    """Run one command."""
    register_strategies()
    if args[:1] == ["pipeline"]:
        from lit_rl.pipeline import main as pipeline

        return pipeline(args[1:])
    # Not as an argument: processes that a strategy launches read the command line too.
    sys.argv[1:] = resolve_configs(args)
    CLI()
    return None


if __name__ == "__main__":
    main()
