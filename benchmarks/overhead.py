"""Overhead of Lightning: a GRPO step of the Trainer (loop, logging to a file, progress bar, callbacks) against bare loops.

    MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=2147483648 python -m benchmarks.overhead

All sides do the same work on the same prompts. ``bare`` calls the module's own stream and training step, metrics included, in
a loop without Trainer, log and callbacks. ``plain`` leaves out the metrics too. ``overhead/<side>`` is the share by which the
Trainer's median step is longer. The two variables let glibc keep the memory that a step frees: returning memory depends on
other allocations, and costs up to a tenth.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.grpo_step import Clock, Place
from benchmarks.timing import alternate, arguments, bare_trainer, report
from benchmarks.workloads import WORKLOADS, Prompts, Workload, save_model, texts
from lit_rl.algorithms import GRPO
from lit_rl.datamodules.base import collate
from lit_rl.models import PolicySpec
from lit_rl.objectives import Objective
from lit_rl.objectives.advantages import group_advantages
from lit_rl.objectives.aggregation import token_weights
from lit_rl.rewards.base import score_rollouts
from lit_rl.sampling import Sampler
from lit_rl.sampling.sampler import SampleKey

STEPS = 10
"""Measured steps of a run; one before them is not counted."""


def build(model: str, workload: Workload) -> tuple[GRPO, Prompts]:
    sampler = Sampler(max_new_tokens=workload.new_tokens)
    module = GRPO(PolicySpec(pretrained=model), sampler=sampler, reward=Place(), group_size=workload.group_size)
    module.configure_model()
    return module, Prompts(texts(workload, workload.prompts * (STEPS + 1)), workload.prompts)


def trainer_run(model: str, workload: Workload, device: str) -> dict[str, float]:
    """Median step of ``trainer.fit`` with all that a run has: log, progress bar, schedule of the learning rate, clipping."""
    module, data = build(model, workload)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            max_steps=STEPS + 1,
            callbacks=[clock, RichProgressBar()],
            logger=CSVLogger(folder),
            log_every_n_steps=1,
            gradient_clip_val=1.0,
            enable_checkpointing=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, data)
    return {"seconds": statistics.median(after - before for before, after in pairwise(clock.ends))}


def bare_run(model: str, workload: Workload, device: str) -> dict[str, float]:
    """Median step of the same stream, training step and metrics in a loop of its own: no hooks, no log, no bar."""
    module, data = build(model, workload)
    module.to(device).train()
    module.trainer = data.trainer = bare_trainer(device, STEPS + 1, Clock())  # Runtime asks it for ranks and precision
    module.trainer.strategy.connect(module)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(module.policy.parameters(), lr=1e-6, weight_decay=0.0)
    seconds, start = [], time.perf_counter()
    for number, batch in enumerate(islice(data.train_dataloader(), STEPS + 1)):
        module.training_step(batch.to(device), number).backward()
        torch.nn.utils.clip_grad_norm_(module.policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return {"seconds": statistics.median(seconds[1:])}


def plain_run(model: str, workload: Workload, device: str) -> dict[str, float]:
    """Median step of the work that changes weights: sampling, rewards, advantages, forward, loss, optimizer; no metrics."""
    module, data = build(model, workload)
    module.to(device).train()
    policy, objective = module.policy, Objective()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)
    seconds = []
    batches = DataLoader(data.train_set, workload.prompts, collate_fn=partial(collate, module.tokenizer))
    for number, prompts in enumerate(batches):
        start = time.perf_counter()
        rollouts = module.sampler.sample(policy, prompts.to(device), workload.group_size, SampleKey(0, number))
        rollouts.texts = module.renderer.decode(rollouts)
        score_rollouts(module.reward, rollouts)
        rollouts.advantages = rollouts.within_groups(rollouts.rewards, group_advantages)[:, None] * rollouts.mask
        rows = rollouts.select(list(range(len(prompts)))).merge_duplicates()
        scores = policy.score(rows, details=False)
        losses = objective.token_losses(scores, rows, 0.0).losses
        tokens = int(rollouts.loss_mask.sum())
        weights = token_weights(rows.loss_mask, objective.aggregation, tokens, len(rollouts), workload.new_tokens)
        (losses * weights * rows.multiplicity[:, None]).sum().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:])}


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), [], ["W1", "tiny"], argv)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        for name in args.workloads:
            sides = {
                "trainer": lambda w=WORKLOADS[name]: trainer_run(model, w, args.device),
                "bare": lambda w=WORKLOADS[name]: bare_run(model, w, args.device),
                "plain": lambda w=WORKLOADS[name]: plain_run(model, w, args.device),
            }
            medians = alternate(sides, args.runs)
            step = medians["trainer"]["seconds"]
            overhead = {f"overhead/{side}": round(step / medians[side]["seconds"] - 1, 4) for side in ("bare", "plain")}
            report("overhead", name, medians, **overhead, runs=args.runs, device=args.device)


if __name__ == "__main__":
    main()
