"""Rollouts of a tiny policy that are recorded, and runs that learn from them."""

import json
from pathlib import Path

import lightning.pytorch as pl
from conftest import quiet_trainer, tiny_data, tiny_spec

from lit_rl.algorithms import GRPO
from lit_rl.callbacks import RolloutWriter
from lit_rl.datamodules import PromptDataModule, Recorded
from lit_rl.evaluation import Evaluation
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler


class Digits(Reward):
    """Counts digits: differs within most groups of what a new model says."""

    alone = True

    def score(self, rollouts):
        return (rollouts.completion_ids % 3).float().mean(1)


def recorder(dtype: str = "float64", seed: int = 0, **options) -> GRPO:
    """The algorithm whose completions are recorded."""
    settings = {"group_size": 4, "sampler": Sampler(max_new_tokens=4), "reward": Digits(), "evaluation": Evaluation(4)}
    return GRPO(options.pop("policy", None) or tiny_spec(dtype=dtype), seed=seed, **{**settings, **options})


def record(folder: Path, module: GRPO | None = None, limit: int = 16, data: PromptDataModule | None = None, **options) -> Path:
    """Record training questions, and return the file."""
    trainer: pl.Trainer = quiet_trainer(folder, callbacks=[RolloutWriter(limit)], **options)
    trainer.predict(module or recorder(), data or tiny_data(eval_batch_size=4), return_predictions=False)
    return folder / "rollouts.jsonl"


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def replayed(path: Path, **options) -> Recorded:
    """The recorded rollouts as training data."""
    settings = {"batch_size": 8, "eval_batch_size": 16}
    return Recorded(str(path), tiny_data(), **{**settings, **options})


def opened(data: Recorded, module=None) -> Recorded:
    """The data set up for a run."""
    trainer = quiet_trainer(None, max_steps=0)
    trainer.strategy._lightning_module = module or GRPO(tiny_spec(), evaluation=Evaluation(4))
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    return data
