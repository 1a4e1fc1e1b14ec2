"""Recorded rollouts: ``lit-rl predict`` samples and scores completions of the training questions, and keeps them as JSONL."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lit_rl.algorithms import PolicyGradient
from lit_rl.models.sources import fingerprint
from lit_rl.options import check_whole
from lit_rl.ranks import on_rank_zero
from lit_rl.text.vocabulary import vocabulary_fingerprint
from lit_rl.training.dry_run import check_judge
from lit_rl.training.recording import question_entries
from lit_rl.training.whole_lines import append_lines, cut_unfinished
from lit_rl.types import PromptBatch

UNRECORDED = ("max_rows", "length_option", "choose")
"""Fields of a sampler that change no completion."""


class RolloutWriter(Callback):
    """Lets ``lit-rl predict`` record rollouts of the training questions, scored by ``model.reward``, for `Recorded` to replay.

    They go to ``rollouts.jsonl`` in the run's folder, one line for a question (`docs/recorded.md`), or with several processes
    to ``rollouts.rank0.jsonl`` and so on. A recording that was killed goes on when it is started again: no question is lost or
    recorded twice. Completions depend on seed, policy, sampler and question alone.

    Args:
        limit: number of training questions to record, from the first on; 0 records all of them.
    """

    def __init__(self, limit: int = 0) -> None:
        check_whole("RolloutWriter", "limit", limit, 0)
        self.limit = limit
        self.written = 0
        """Questions that this process has recorded since it began."""
        self._path: Path  # of this process
        self._done: set[int] = set()  # numbers of the recorded questions, of all processes
        self._run: dict[str, Any] = {}  # origin of the rollouts, which each line names

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            raise ValueError("RolloutWriter records in lit-rl predict and has nothing to do in fit; remove it.")
        if stage != "predict":
            return
        if not isinstance(module, PolicyGradient):
            raise ValueError(
                f"RolloutWriter needs an algorithm that samples, and {type(module).__name__} does not: write GRPO."
            )
        if module.policy_spec.unshard == "layer" and trainer.world_size > 1:
            raise ValueError("RolloutWriter lets each process work at its own pace; write model.policy.unshard rollout.")
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.train_set[0].context:
            raise ValueError("RolloutWriter records whole questions, and these data are parts of texts; leave positions out.")
        module.check_samples(data.train_set)
        check_judge(module.evaluation.correct, data.train_set)
        data.predict_on("train_set", self.limit)
        module.recorder = partial(self.record, module)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage == "predict" and isinstance(module, PolicyGradient):
            module.recorder = None

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        # By one process: others may have fewer files than an earlier recording had.
        on_rank_zero(trainer, lambda: _mend(folder))
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._path, self._done, self._run = folder / f"rollouts{rank}.jsonl", set(), {}

    def record(self, module: PolicyGradient, prompts: PromptBatch) -> None:
        """Record a batch of questions, unless all of them are recorded."""
        if not self._run:  # not earlier, since sharded weights are whole only now
            self._begin(module)
        if self._done.issuperset(prompts.numbers):
            return
        # All questions of a batch together, recorded or not: in another batch log-probabilities would round differently.
        rollouts = module.collector().draw(prompts, round=0)
        entries = question_entries(rollouts, module.evaluation.correct, module.sampler.arm_names)
        fresh = [entry | {"run": self._run} for entry in entries if entry["number"] not in self._done]
        append_lines(self._path, [json.dumps(entry, allow_nan=False) for entry in fresh])
        self._done |= {entry["number"] for entry in fresh}
        self.written += len(fresh)

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        rank_zero_info(f"{self.written} questions recorded in {self._path}, {len(self._done)} with those from before.")

    def _begin(self, module: PolicyGradient) -> None:
        """Read the questions that an earlier start has recorded.

        Raises:
            ValueError: if it recorded with other options or another policy.
        """
        # As JSON gives it back, for the comparison.
        self._run = json.loads(json.dumps(origin(module)))
        for path in sorted(self._path.parent.glob("rollouts*.jsonl")):
            self._done |= _recorded(path, self._run)


def _recorded(path: Path, run: dict[str, Any]) -> set[int]:
    """Numbers of the questions in a file of the same origin."""
    numbers = set()
    with path.open(encoding="utf-8") as file:
        for place, line in enumerate(file, start=1):
            if not line.endswith("\n"):  # another process is writing it
                break
            entry = json.loads(line)
            for name, value in run.items():
                if (before := entry["run"].get(name)) != value:
                    raise ValueError(
                        f"{path}, line {place} was recorded with {name} {before!r}, and now it is {value!r}; choose another "
                        "trainer.default_root_dir, or move the file away."
                    )
            numbers.add(entry["number"])
    return numbers


def _mend(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("rollouts*.jsonl"):
        cut_unfinished(path)


def origin(module: PolicyGradient) -> dict[str, Any]:
    """Policy and options that decide the rollouts of a question, of plain types."""
    spec = module.policy_spec
    # A copy by its options: what callbacks have put into others is no plain type.
    sampler = dataclasses.replace(module.sampler)
    return {
        "policy": spec.pretrained or f"{(spec.config or {})['model_type']} from scratch",
        # Of the model alone: a critic's head beside it changes no completion.
        "weights": fingerprint(module.policy.model),
        "tokenizer": vocabulary_fingerprint(module.tokenizer),
        "seed": module.seed,
        "group_size": module.group_size,
        "reward": type(module.reward).__name__,
        "sampling": {name: value for name, value in dataclasses.asdict(sampler).items() if name not in UNRECORDED},
    }
