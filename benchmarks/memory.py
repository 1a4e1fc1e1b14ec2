"""Peak memory of one GRPO update above the model's own, with a large vocabulary: 64 rows of 256 new tokens.

    python -m benchmarks.memory --against trl

Each measurement is a process of its own, with gradient checkpointing on both sides. ``lit_rl`` and ``trl`` compute loss and
gradient of the same rows. ``all_logits`` is only a forward pass that holds every logit. Memory is resident on a CPU, allocated
on a GPU. Resident memory is memory in use: with MALLOC_MMAP_THRESHOLD_ set, glibc returns large tensors to the system at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import arguments
from benchmarks.workloads import save_model
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.objectives import Objective
from lit_rl.objectives.aggregation import token_weights
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.check import check_policy
from lit_rl.types import PromptBatch, Sample

GROUP, PROMPT = 8, 16
SIZES = {"W7": (64, 256, 65_536), "W7 doubled": (64, 256, 131_072), "tiny": (16, 4, 512)}
"""Rows, new tokens, vocabulary."""


def tokens(rows: int, length: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random prompts (P, L) and completions (N, T)."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary, (rows // GROUP, PROMPT), generator=draw)
    return prompts, torch.randint(3, vocabulary, (rows, length), generator=draw)


def lit_rl_update(model: str, rows: int, length: int, vocabulary: int, device: str) -> Any:
    """Update with loss and gradient as `GRPO.training_step` computes them."""
    spec = PolicySpec(pretrained=model, gradient_checkpointing=True)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    policy.to(device)
    ids, completions = tokens(rows, length, vocabulary)
    samples = [Sample("", "", "", number) for number in range(len(ids))]
    flat = torch.zeros(rows, length)
    batch = Rollouts(
        PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), [[] for _ in samples], samples),
        completion_ids=completions,
        lengths=torch.full((rows,), length),
        truncated=torch.ones(rows, dtype=torch.bool),
        logprobs=flat - 10,
        entropies=flat,
        temperature=torch.ones(rows),
        advantages=torch.linspace(-1, 1, rows)[:, None].expand(rows, length).clone(),
    ).to(device)

    def update() -> None:
        scores = policy.score(batch, details=False)
        losses = Objective().token_losses(scores, batch, 0.0).losses
        (losses * token_weights(batch.loss_mask, "token", rows * length, rows, length)).sum().backward()

    return update


def trl_update(model: str, rows: int, length: int, vocabulary: int, device: str) -> Any:
    """Update with TRL's own loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        num_generations=GROUP,
        max_completion_length=length,
        gradient_checkpointing=True,
        bf16=False,
        use_cpu=device == "cpu",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * (rows // GROUP)}),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )
    trainer.model.train()
    trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer.current_gradient_accumulation_steps = 1
    ids, completions = tokens(rows, length, vocabulary)
    ids = ids.repeat_interleave(GROUP, dim=0)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.linspace(-1, 1, rows),
        "old_per_token_logps": torch.full((rows, length), -10.0),
        "num_items_in_batch": torch.tensor(rows * length),
    }
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return lambda: trainer._compute_loss(trainer.model, inputs).backward()


def all_logits(model: str, rows: int, length: int, vocabulary: int, device: str) -> Any:
    """Forward pass that holds all logits of prompts and completions."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    ids, completions = tokens(rows, length, vocabulary)
    whole = torch.cat([ids.repeat_interleave(GROUP, dim=0), completions], dim=1).to(device)
    return lambda: network(input_ids=whole, use_cache=False).logits


SIDES = {"lit_rl": lit_rl_update, "trl": trl_update, "all_logits": all_logits}


def resident(field: str) -> int:
    """Resident bytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def measure(side: str, folder: str, size: tuple[int, int, int], args: argparse.Namespace, answer: Any) -> None:
    """Send the peak memory of one update above the memory before it, in MiB, and its seconds. Runs in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    update = SIDES[side](folder, *size, args.device)
    gc.collect()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    start = time.perf_counter()
    kept = update()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident("VmHWM")
    answer.send(((peak - before) / 2**20, seconds))
    del kept


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), ["trl"], list(SIZES), argv)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # read by the processes that are started
    context = multiprocessing.get_context("spawn")
    sides = [side for side in SIDES if side != "trl" or args.against == "trl"]
    for name in args.workloads:
        line: dict[str, Any] = {"benchmark": "memory", "workload": name, "device": args.device}
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), vocabulary=SIZES[name][2])
            for side in sides:
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=measure, args=(side, folder, SIZES[name], args, send))
                process.start()
                process.join()
                if not receive.poll():
                    raise RuntimeError(f"{side} ended without a measurement, with status {process.exitcode}")
                line[f"{side}/mib"], line[f"{side}/seconds"] = (round(value, 2) for value in receive.recv())
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
