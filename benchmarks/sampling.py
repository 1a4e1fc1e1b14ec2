"""Seconds of sampling alone, against transformers' ``generate`` on the same repeated prompts.

python -m benchmarks.sampling --against hf
"""

from __future__ import annotations

import tempfile
import time
import warnings
from itertools import count
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.timing import alternate, arguments, report
from benchmarks.workloads import WORKLOADS, Workload, save_model, texts
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import PromptBatch, Sample


def lit_rl_side(model: str, workload: Workload, end: bool, device: str):
    """Sampler: completions of every prompt, with log-probabilities and entropies."""
    spec = PolicySpec(pretrained=model)
    tokenizer = load_tokenizer(spec)
    policy = Policy(spec, tokenizer)
    check_policy(policy)
    policy.to(device)
    if not end:
        policy.end_tokens = []
    prompts = texts(workload, workload.prompts)
    samples = [Sample(text, "", "", number) for number, text in enumerate(prompts)]
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    batch = PromptBatch.pad(ids, [[] for _ in ids], samples, int(tokenizer.pad_token_id)).to(device)
    rollout = count()

    def run() -> dict[str, float]:
        start = time.perf_counter()
        rows = Sampler(workload.new_tokens).sample(policy, batch, workload.group_size, SampleKey(0, next(rollout)))
        tokens = int(rows.lengths.sum())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens_per_second": tokens / seconds}

    return run


def generate_side(model: str, workload: Workload, end: bool, device: str):
    """``generate`` of transformers: all rows in one batch, and nothing recorded but tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    prompts = [text for text in texts(workload, workload.prompts) for _ in range(workload.group_size)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(device)
    ends = {} if end else {"eos_token_id": None}

    @torch.no_grad()
    def run() -> dict[str, float]:
        start = time.perf_counter()
        out = network.generate(**batch, max_new_tokens=workload.new_tokens, do_sample=True, top_k=0, pad_token_id=0, **ends)
        tokens = int((out[:, batch["input_ids"].shape[1] :] != 0).sum()) if end else workload.rows * workload.new_tokens
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens_per_second": tokens / seconds}

    return run


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), ["hf"], list(WORKLOADS), argv)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        for name in args.workloads:
            for end in (True, False):
                sides = {"lit_rl": lit_rl_side(model, WORKLOADS[name], end, args.device)}
                if args.against:
                    sides["hf"] = generate_side(model, WORKLOADS[name], end, args.device)
                report("sampling", name, alternate(sides, args.runs), end_token=end, runs=args.runs, device=args.device)


if __name__ == "__main__":
    main()
