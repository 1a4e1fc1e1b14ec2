"""Completions of prompts, sampled in this process from the policy itself: no copy of the weights, nothing to keep in step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_rl.policy import Policy
from lit_rl.rollouts import Rollouts, Support
from lit_rl.sampling.cache import make_room, repeat_cache, select_cache
from lit_rl.sampling.choose import Choice, choose
from lit_rl.types import PromptBatch


class SampleKey(NamedTuple):
    """What a draw depends on beside the prompt's number: the run's seed, the rollout, and the round of refilling it."""

    seed: int
    rollout: int
    round: int = 0


@dataclass
class Sampler:
    """Draws completions; callbacks may set its attributes between rollouts."""

    max_new_tokens: int = 256
    """Longest completion in tokens, the end token among them; what runs into it is truncated."""
    temperature: float = 1.0
    """Divides the logits; log-probabilities are those of the tempered distribution. 0 is greedy (evaluation only)."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together hold this probability; 1 keeps all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"sampler.max_new_tokens is {self.max_new_tokens}; write at least 1.")
        if self.temperature < 0:
            raise ValueError(f"sampler.temperature is {self.temperature}; write 0 (greedy) or more.")
        if self.top_k < 0:
            raise ValueError(f"sampler.top_k is {self.top_k}; write 0 (keep all) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampler.top_p is {self.top_p}; write a number above 0 and up to 1 (keep all).")

    @torch.no_grad()
    def sample(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Rollouts:
        """Sample ``group_size`` completions of every prompt.

        The policy is put in eval mode meanwhile: its cache works there, also under gradient checkpointing.

        Raises:
            ValueError: where prompt and completion together would not fit into the model's positions.
        """
        self._check_context(policy, prompts)
        training = policy.training
        policy.eval()
        try:
            return self._decode(policy, prompts, group_size, key)
        finally:
            policy.train(training)

    def _decode(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Rollouts:
        device = prompts.ids.device
        uniforms = draw_uniforms(key, prompts.numbers, group_size, self.max_new_tokens).to(device)
        ends = torch.tensor(policy.end_tokens, device=device)
        record = _Record(len(prompts) * group_size, self.max_new_tokens, device)
        logits, cache = policy.prefill(prompts)
        repeat_cache(cache, group_size)
        make_room(cache, self.max_new_tokens)
        logits = logits.repeat_interleave(group_size, dim=0)
        mask = prompts.mask.repeat_interleave(group_size, dim=0)
        lengths = mask.sum(1)
        rows = torch.arange(len(mask), device=device)  # which row of the record each row of the batch is
        open_ = torch.ones_like(rows, dtype=torch.bool)
        for step in range(self.max_new_tokens):
            choice = choose(logits, self.temperature, self.top_k, self.top_p, uniforms[rows, step])
            ended = torch.isin(choice.tokens, ends)
            record.write(step, rows, open_, choice, ended)
            open_ = open_ & ~ended
            alive = bool(open_.any())
            if step + 1 == self.max_new_tokens or not _on_any_rank(alive, policy.spec.gather, device):
                break
            tokens = choice.tokens
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            # Finished rows leave together once they are an eighth of the batch: copying the cache costs as much as a step.
            if alive and int((~open_).sum()) * 8 >= len(open_):
                stay = open_.nonzero()[:, 0]
                select_cache(cache, stay)
                rows, tokens, mask, lengths, open_ = (value[stay] for value in (rows, tokens, mask, lengths, open_))
            logits = policy.decode(tokens, mask, lengths + step, cache)
        return record.rollouts(prompts, group_size, self.temperature)

    def _check_context(self, policy: Policy, prompts: PromptBatch) -> None:
        longest = int(prompts.mask.sum(1).max())
        if policy.context is not None and longest + self.max_new_tokens > policy.context:
            raise ValueError(
                f"a prompt of {longest} tokens and {self.max_new_tokens} new ones exceed the model's {policy.context} "
                "positions; lower sampler.max_new_tokens or shorten the prompts."
            )


def _on_any_rank(alive: bool, gather: str, device: torch.device) -> bool:
    """Whether to go on: where weights are gathered layer by layer, every rank must run the same number of forwards."""
    if gather == "rollout" or not torch.distributed.is_initialized():
        return alive
    flag = torch.tensor(int(alive), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def draw_uniforms(key: SampleKey, numbers: list[int], group_size: int, length: int) -> Tensor:
    """(P * G, length) float32 in [0, 1): one generator per prompt, keyed by (seed, rollout, the prompt's number, round)."""
    draws = [
        np.random.default_rng([key.seed, key.rollout, number, key.round]).random((group_size, length), dtype=np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.concatenate(draws))


class _Record:
    """What was sampled, by row of the rollout, however the rows of the batch were dropped on the way."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, width, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, width, dtype=torch.float32, device=device)
        self.entropies = torch.zeros(rows, width, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.kept: list[tuple[Tensor, Tensor]] = []  # per step: rows, and the ids that each of them kept

    def write(self, step: int, rows: Tensor, open_: Tensor, choice: Choice, ended: Tensor) -> None:
        rows = rows[open_]
        self.tokens[rows, step] = choice.tokens[open_]
        self.logprobs[rows, step] = choice.logprobs[open_].float()
        self.entropies[rows, step] = choice.entropies[open_].float()
        self.lengths[rows] = step + 1
        self.ended[rows] = ended[open_]
        if choice.kept is not None:
            place, ids = choice.kept[open_].nonzero(as_tuple=True)
            self.kept.append((rows[place] * self.tokens.shape[1] + step, ids.int()))

    def rollouts(self, prompts: PromptBatch, group_size: int, temperature: float) -> Rollouts:
        width = int(self.lengths.max())
        heat = torch.full(self.lengths.shape, temperature or 1.0, dtype=torch.float32, device=self.lengths.device)
        return Rollouts(
            prompts,
            group_size,
            completion_ids=self.tokens[:, :width].clone(),
            lengths=self.lengths,
            truncated=~self.ended,
            logprobs=self.logprobs[:, :width].clone(),
            entropies=self.entropies[:, :width].clone(),
            temperature=heat,
            support=self._support(width),
        )

    def _support(self, width: int) -> Support | None:
        if not self.kept:
            return None
        places = torch.cat([place for place, _ in self.kept])
        order = places.argsort(stable=True)  # from step by step to row by row
        ids = torch.cat([ids for _, ids in self.kept])[order]
        counts = places.bincount(minlength=self.tokens.numel()).view(self.tokens.shape)
        return Support(ids, counts[:, :width].int())
