"""Comparison of policies by LightningCLI: one after another goes through ``Trainer.test`` on the same questions."""

from __future__ import annotations

import gc
import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_rl.cli.kept_answers import KeptAnswers
from lit_rl.cli.lightning_cli import CLI, ArgumentCheck, one_line_errors
from lit_rl.cli.lock import locked
from lit_rl.cli.noise import quiet_start
from lit_rl.datamodules.jsonl import thin_out
from lit_rl.evaluation.compare import compare
from lit_rl.evaluation.questions import QuestionEvaluation, QuestionResult
from lit_rl.files import write_text
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.spec import PolicySpec
from lit_rl.options import first_line
from lit_rl.reports.comparison import markdown, show

SPLITS = {"val": "validation", "test": "test"}
MODEL_FILES = ("config.json", "adapter_config.json")
"""A folder of a policy has one of them."""
OF_ONE_MODEL = {
    "config": None,
    "size": None,
    "tokenizer": None,
    "gguf_file": None,
    "lora": None,
    "gradient_checkpointing": False,
}
"""Options of ``model.policy`` that belong to the model of a config, and to its training."""


class Limit(Callback):
    """Takes at most so many questions, evenly spread over the evaluated set; 0 takes all."""

    def __init__(self, split: str, limit: int) -> None:
        self.split, self.limit = split, limit

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        data, name = trainer.datamodule, f"{self.split}_set"  # type: ignore[attr-defined]
        setattr(data, name, thin_out(getattr(data, name), self.limit))


class CompareCLI(CLI):
    """LightningCLI that evaluates several policies, and compares their answers.

    Args:
        policies: folder or hub name of each policy, by its name.
        options: command line after the policies, configs by path.
    """

    def __init__(self, policies: dict[str, str], options: list[str]) -> None:
        self.policies, self._options = policies, options
        super().__init__("test")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--split", type=Literal["val", "test"], default="test", help="Set of the questions.")
        parser.add_argument("--limit", type=NonNegativeInt, default=0, help="Most questions, evenly spread; 0: all.")
        parser.add_argument("--folder", type=str, default="runs/compare", help="Folder of the results.")

    def command_line(self) -> list[str]:
        return ["test", *self._options]

    def before_instantiate_classes(self) -> None:
        """Leave of a run's config what evaluation needs."""
        config = self.config[self.subcommand]
        if config.get("ckpt_path"):
            raise ValueError("ckpt_path: compare evaluates exported folders and hub names; write the run's export as a policy.")
        judge = config.model.init_args.get("evaluation") or Namespace(class_path="lit_rl.evaluation.Evaluation")
        if judge.class_path.rpartition(".")[2] != "Evaluation":
            raise ValueError(
                f"model.evaluation is {judge.class_path}; compare takes Evaluation, which judges whole answers: write it."
            )
        judge = Namespace(class_path=_path_of(QuestionEvaluation), init_args=judge.get("init_args", Namespace()))
        # Without a learning rule: neither references nor critics are built.
        options = Namespace(policy=config.model.init_args.policy, evaluation=judge, seed=config.seed_everything)
        config.model = Namespace(class_path="lit_rl.algorithms.module.PolicyModule", init_args=options)
        for name, value in OF_ONE_MODEL.items():
            options.policy[name] = value
        trainer = config.trainer
        trainer.callbacks, trainer.logger, trainer.enable_checkpointing = None, False, False
        trainer.default_root_dir = config.folder

    def instantiate_classes(self) -> None:
        """Nothing yet: policies are built one after another."""

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        for name, source in self.policies.items():
            check_policy_source(name, source)
        rank_zero_info(self._plan(config))
        folder = Path(config.folder)
        with ExitStack() as held:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                held.enter_context(locked(folder))
            results = {name: self._results(name, source) for name, source in self.policies.items()}
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                report = {"policies_from": self.policies, "split": config.split, "limit": config.limit} | compare(results)
                write_text(folder / "comparison.json", json.dumps(report, indent=2))
                write_text(folder / "comparison.md", markdown(report) + "\n")
                show(report)

    def _plan(self, config: Namespace) -> str:
        """The comparison in a line, before it begins."""
        policies = ", ".join(f"{name} ({source})" for name, source in self.policies.items())
        options = config.model.init_args.evaluation.init_args
        asked = f"{config.data.class_path.rpartition('.')[2]}'s {SPLITS[config.split]} set"
        limit = f"at most {config.limit} questions of {asked}, evenly spread" if config.limit else f"all questions of {asked}"
        samples = options.get("samples", 0)
        sampled = f" and {samples} samples at temperature {options.get('temperature')}" if samples else ""
        return f"Comparing {policies} on {limit}: one greedy completion{sampled} each. Results go to {config.folder}."

    def _results(self, name: str, source: str) -> list[QuestionResult]:
        """Answers of one policy, from its file if nothing has changed since."""
        config = self.config[self.subcommand]
        config.model.init_args.policy.pretrained = source
        kept = KeptAnswers(Path(config.folder) / "policies" / f"{name}.json", config)
        found = kept.read()
        if found is not None:
            rank_zero_info(f"{name}: the answers in {kept.file} are kept, since nothing has changed.")
            return found
        start = time.perf_counter()
        results = self._evaluate(config)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            kept.write(results)
        right = sum(each.right for each in results)
        rank_zero_info(f"{name}: {right} of {len(results)} questions right, {time.perf_counter() - start:.0f} s.")
        return results

    def _evaluate(self, config: Namespace) -> list[QuestionResult]:
        self._set_seed()
        super().instantiate_classes()
        self.trainer.callbacks.append(Limit(config.split, config.limit))  # type: ignore[attr-defined]
        # Called at once: a name for the method would keep the Trainer, and with it the policy.
        (self.trainer.validate if config.split == "val" else self.trainer.test)(
            self.model, datamodule=self.datamodule, verbose=False
        )
        results = _of_all_ranks(list(self.model.evaluation.results.values()), self.trainer.world_size)
        if not results:
            raise ValueError(f"no question was answered; see data and trainer.limit_{config.split}_batches.")
        # Freed before the next policy is loaded; the Trainer and the module refer to each other.
        del self.trainer, self.model, self.datamodule, self.config_init
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return results


class CompareCheck(ArgumentCheck, CompareCLI):
    """Parses its arguments and runs nothing."""


def check_policy_source(name: str, source: str) -> None:
    """Refuse a policy without a tokenizer, or a local folder without a model.

    Raises:
        ValueError: with the name of the policy.
    """
    try:
        load_tokenizer(PolicySpec(pretrained=source))
    except ValueError as error:
        raise ValueError(f"policy {name}: {first_line(error)}") from error
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in MODEL_FILES):
        raise ValueError(f"policy {name}: {source} holds neither {' nor '.join(MODEL_FILES)}; give an exported folder.")


def _of_all_ranks(results: list[QuestionResult], ranks: int) -> list[QuestionResult]:
    """Results of all ranks in the order of their questions' numbers; every rank must call."""
    rows: list[Any] = [[asdict(each) for each in results]]
    if ranks > 1:
        rows *= ranks
        torch.distributed.all_gather_object(rows, rows[0])
    return sorted((QuestionResult(**row) for part in rows for row in part), key=lambda each: each.number)


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def check_comparison(policies: dict[str, str], options: list[str]) -> None:
    """Parse the arguments of a comparison.

    Args:
        policies: folder or hub name of each policy, by its name.
        options: command line after the policies, configs by path.

    Raises:
        ValueError: for wrong ones.
    """
    with one_line_errors():
        CompareCheck(policies, options)


def run_compare(policies: dict[str, str], options: list[str]) -> None:
    """Run ``compare``.

    Args:
        policies: folder or hub name of each policy, by its name.
        options: command line after the policies, configs by path.
    """
    quiet_start()
    with one_line_errors():
        CompareCLI(policies, options)
