"""Prompts and rollouts made by hand."""

import torch

from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample

PAD = 9


def prompts_of(*prompts: list[int], completions: list[list[int]] | None = None) -> PromptBatch:
    samples = [Sample(f"prompt {n}", "", str(n), 100 + n) for n in range(len(prompts))]
    return PromptBatch.pad(prompts, completions or [[] for _ in prompts], samples, PAD)


def rollouts_of(prompts: PromptBatch, group_size: int, rows: list[list[int]], **fields) -> Rollouts:
    """Rows of tokens as rollouts; log-probabilities and entropies count up, 0 after a row's end."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.zeros(len(rows), width, dtype=torch.long).masked_scatter(
        mask, torch.tensor([token for row in rows for token in row])
    )
    counting = torch.arange(1.0, int(lengths.sum()) + 1)
    zeros = torch.zeros(len(rows), width)
    settings = {
        "logprobs": zeros.masked_scatter(mask, -counting / 8),
        "entropies": zeros.masked_scatter(mask, counting / 4),
        "temperature": torch.ones(len(rows)),
        "truncated": torch.zeros(len(rows), dtype=torch.bool),
    }
    settings["prompt"] = torch.arange(len(prompts)).repeat_interleave(group_size)
    return Rollouts(prompts, completion_ids=ids, lengths=lengths, **{**settings, **fields})


def completions_of(samples: list[Sample], texts: list[str], truncated: list[bool] | None = None) -> Rollouts:
    """Decoded completions, as many of each sample; their tokens play no part."""
    prompts = PromptBatch.pad([[1] for _ in samples], [[] for _ in samples], samples, PAD)
    cut = torch.tensor(truncated or [False] * len(texts))
    return rollouts_of(prompts, len(texts) // len(samples), [[1]] * len(texts), texts=texts, truncated=cut)


def repeated() -> Rollouts:
    """Six rows of two prompts; rows 0 and 2 are equal, and 3, 4 and 5."""
    rows = [[8, 2], [3], [8, 2], [8, 2], [8, 2], [8, 2]]
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]])
    advantages = torch.tensor([0.5, -1.0, 0.5, 2.0, 2.0, 2.0])[:, None].repeat(1, 2)
    fields = {"logprobs": logprobs, "entropies": -logprobs, "advantages": advantages}
    return rollouts_of(prompts_of([4, 5, 6], [7]), 3, rows, **fields)
