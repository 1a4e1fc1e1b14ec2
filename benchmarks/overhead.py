"""What Lightning costs: a GRPO step of the Trainer (loop, logging to a file, progress bar, callbacks) against a bare loop.

    MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=2147483648 python -m benchmarks.overhead

Both sides call the same sampler, reward, advantages, forward, loss and optimizer on the same prompts; the bare one has no
Trainer, no log and no figures. ``overhead`` is the share by which the Trainer's median step is longer. The two variables let
glibc keep the memory that a step frees: whether it returns it depends on what is held elsewhere, and costs up to a tenth.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.grpo_step import Clock, Place
from benchmarks.timing import alternate, arguments, report
from benchmarks.workloads import WORKLOADS, Prompts, Workload, save_model, texts
from lit_rl.advantages import group_advantages
from lit_rl.aggregation import token_weights
from lit_rl.algorithms import GRPO
from lit_rl.datamodules.base import collate
from lit_rl.loading import PolicySpec
from lit_rl.objective import Objective
from lit_rl.rewards.base import score_rollouts
from lit_rl.sampling.sampler import SampleKey, Sampler

STEPS = 10
"""Measured steps of a run; one before them is not counted."""


def build(model: str, workload: Workload) -> tuple[GRPO, Prompts]:
    module = GRPO(PolicySpec(pretrained=model), Sampler(workload.new_tokens), Place(), group_size=workload.group_size)
    module.configure_model()
    return module, Prompts(texts(workload, workload.prompts * (STEPS + 1)), workload.prompts)


def trainer_run(model: str, workload: Workload, device: str) -> dict[str, float]:
    """Steps of ``trainer.fit`` as a run has them: a log, a progress bar, the learning rate's schedule, clipping."""
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
    """The same work in a loop of its own."""
    module, data = build(model, workload)
    module.to(device).train()
    policy, objective = module.policy, Objective()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)
    batches = DataLoader(data.train_set, workload.prompts, collate_fn=partial(collate, module.tokenizer))
    seconds = []
    for number, prompts in enumerate(batches):
        start = time.perf_counter()
        rollouts = module.sampler.sample(policy, prompts.to(device), workload.group_size, SampleKey(0, number))
        rollouts.texts = module.decode(rollouts)
        score_rollouts(module.reward, rollouts)
        advantages = group_advantages(rollouts.rewards.view(-1, workload.group_size)).view(-1, 1)
        rollouts.advantages = advantages * rollouts.mask
        rows = rollouts.select(list(range(len(prompts)))).merge_duplicates()
        scores = policy.score(rows, details=False)
        losses = objective.token_losses(scores, rows, 0.0, 0.0).losses
        mask = rows.loss_mask
        weights = token_weights(mask, objective.aggregation, int(mask.sum()), len(rollouts), workload.new_tokens)
        (losses * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:])}


def main() -> None:
    args = arguments(str(__doc__), [], ["W1", "tiny"])
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        for name in args.workloads:
            sides = {
                "trainer": lambda w=WORKLOADS[name]: trainer_run(model, w, args.device),
                "bare": lambda w=WORKLOADS[name]: bare_run(model, w, args.device),
            }
            medians = alternate(sides, args.runs)
            overhead = medians["trainer"]["seconds"] / medians["bare"]["seconds"] - 1
            report("overhead", name, medians, overhead=round(overhead, 4), runs=args.runs, device=args.device)


if __name__ == "__main__":
    main()
