"""Seconds of a whole GRPO step: sampling, reward, update.

    python -m benchmarks.grpo_step --against trl
    python -m benchmarks.grpo_step --against trl --compile

Both sides train a copy of the same random llama on the same prompts with the same reward, limits, precision and threads. TRL
generates with transformers' ``generate``, all rows in one batch, and trains without checkpointing and without mixed precision.
Both accumulate over ``MICRO_BATCHES``, since smaller ones stay in the processor's caches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.timing import alternate, arguments, bare_trainer, report
from benchmarks.workloads import WORKLOADS, Prompts, Workload, save_model, texts
from lit_rl.algorithms import GRPO
from lit_rl.models import PolicySpec
from lit_rl.objectives import Objective
from lit_rl.rewards import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler

STEPS = 2
"""Measured steps of a run; one before them is not counted, with ``--compile`` four."""
MICRO_BATCHES = 4
"""Micro-batches of each optimizer step. With one, TRL is as fast on W1 and W4 and takes 1.5 and 1.8 times as long on W2, W3."""


class Place(Reward):
    """Place of a completion in its group: rewards that differ within every group, at no cost."""

    def score(self, rollouts: Rollouts) -> Tensor:
        places = rollouts.within_groups(rollouts.temperature, lambda values: torch.ones_like(values).cumsum(1) - 1)  # (N)
        return places / rollouts.within_groups(places, lambda values: torch.full_like(values, values.shape[1]))


class Clock(pl.Callback):
    """End of each optimizer step, mean tokens of its completions, and seconds of its rollout."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[float] = []
        self.rollouts: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == len(self.ends):
            return  # inside an accumulation window
        self.ends.append(time.perf_counter())
        metrics = trainer.callback_metrics
        self.rollouts.append(float(metrics["time/rollout"]))
        self.tokens.append(float(metrics["completions/mean_length"]))


def lit_rl_run(model: str, workload: Workload, end: bool, device: str, compiled: bool) -> dict[str, float]:
    """Seconds of the median step of a short training, and tokens per second."""
    torch._dynamo.reset()
    steps = STEPS + uncounted(compiled)
    module = GRPO(
        PolicySpec(pretrained=model, compile=compiled),
        sampler=Sampler(max_new_tokens=workload.new_tokens),
        reward=Place(),
        group_size=workload.group_size,
        objective=Objective(clip_high=0.28),
        kl_coef=workload.kl_coef,
    )
    clock = Clock()
    trainer = bare_trainer(device, steps, clock, min(MICRO_BATCHES, workload.prompts))
    module.configure_model()
    if not end:
        module.policy.end_tokens = []
    trainer.fit(module, Prompts(texts(workload, workload.prompts * steps), workload.prompts))
    seconds = [after - before for before, after in pairwise(clock.ends)][-STEPS:]
    tokens = statistics.mean(clock.tokens[-STEPS:]) * workload.rows
    step = statistics.median(seconds)
    return {"seconds": step, "rollout_seconds": statistics.median(clock.rollouts[-STEPS:]), "tokens_per_second": tokens / step}


def trl_run(model: str, workload: Workload, end: bool, device: str, compiled: bool) -> dict[str, float]:
    """The same metrics by TRL, without the rollout's."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch._dynamo.reset()
    steps = STEPS + uncounted(compiled)
    ends: list[float] = []
    tokens: list[int] = []

    class StepClock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    def place(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(len(ids) for ids in completion_ids))
        return [row % workload.group_size / workload.group_size for row in range(len(completions))]

    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=workload.rows // min(MICRO_BATCHES, workload.prompts),
        gradient_accumulation_steps=min(MICRO_BATCHES, workload.prompts),
        num_generations=workload.group_size,
        max_completion_length=workload.new_tokens,
        max_steps=steps,
        beta=workload.kl_coef,
        epsilon_high=0.28,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        torch_compile=compiled,
        bf16=False,
        use_cpu=device == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=place,
        args=options,
        train_dataset=Dataset.from_dict({"prompt": texts(workload, workload.prompts * steps)}),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        callbacks=[StepClock()],
    )
    if not end:
        trainer.generation_config.eos_token_id = trainer.model.generation_config.eos_token_id = None
        trainer.eos_token_ids = [-1]
    trainer.train()
    step = statistics.median([after - before for before, after in pairwise(ends)][-STEPS:])
    return {"seconds": step, "tokens_per_second": statistics.mean(tokens[-STEPS:]) / step}


def uncounted(compiled: bool) -> int:
    """Number of steps before the measured ones: a shape that comes for the second time is compiled once more."""
    return 4 if compiled else 1


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), ["trl"], list(WORKLOADS), argv, compiles=True)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        for name in args.workloads:
            for end in (True, False):
                workload = WORKLOADS[name]
                sides = {"lit_rl": partial(lit_rl_run, model, workload, end, args.device, args.compile)}
                if args.against:
                    sides["trl"] = partial(trl_run, model, workload, end, args.device, args.compile)
                medians = alternate(sides, args.runs)
                more = {"end_token": end, "compile": args.compile, "runs": args.runs, "device": args.device}
                report("grpo_step", name, medians, **more)


if __name__ == "__main__":
    main()
