"""Completions of prompts, sampled in this process from the policy itself: no copy of the weights, nothing to keep in step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_rl.policy import Policy
from lit_rl.rollouts import Rollouts, Support
from lit_rl.sampling.batch import DecodingBatch
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
    temperature: float | list[float] = 1.0
    """Divides the logits; log-probabilities are those of the tempered distribution. 0 is greedy (evaluation only). A list
    gives the members of each group their own, in turn."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together hold this probability; 1 keeps all."""
    max_rows: int = 0
    """Completions that are decoded at a time on each rank, which bounds memory; as groups finish, waiting prompts take their
    place. 0 decodes all of them at once."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"sampler.max_new_tokens is {self.max_new_tokens}; write at least 1.")
        heat = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        if not heat or min(heat) < 0 or (len(heat) > 1 and min(heat) == 0):
            raise ValueError(
                f"sampler.temperature is {self.temperature}; write 0 (greedy) or more, or a list of numbers above 0."
            )
        if self.max_rows < 0:
            raise ValueError(f"sampler.max_rows is {self.max_rows}; write 0 (all at once) or more.")
        if self.top_k < 0:
            raise ValueError(f"sampler.top_k is {self.top_k}; write 0 (keep all) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampler.top_p is {self.top_p}; write a number above 0 and up to 1 (keep all).")

    @torch.no_grad()
    def sample(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Rollouts:
        """Sample ``group_size`` completions of every prompt.

        The policy is put in eval mode meanwhile: its cache works there, also under gradient checkpointing.

        Raises:
            ValueError: where prompt and completion together would not fit into the model's positions, or a group into
                ``max_rows``.
        """
        self._check_fit(policy, prompts, group_size)
        training = policy.training
        policy.eval()
        try:
            return self._decode(policy, prompts, group_size, key)
        finally:
            policy.train(training)

    def _decode(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Rollouts:
        device = prompts.ids.device
        uniforms = draw_uniforms(key, prompts.numbers, group_size, self.max_new_tokens).to(device)
        heat = self._temperatures(group_size).repeat(len(prompts)).to(device)
        greedy = bool((heat == 0).any())
        ends = torch.tensor(policy.end_tokens, device=device)
        record = _Record(len(prompts) * group_size, self.max_new_tokens, device)
        batch = DecodingBatch(policy, prompts, group_size, self.max_new_tokens, self.max_rows)
        batch.admit()
        while batch.anything_left():
            rows, taken = batch.rows, batch.taken
            choice = choose(
                batch.logits,
                None if greedy else heat[rows],
                self.top_k,
                self.top_p,
                uniforms[rows, taken.clamp(max=self.max_new_tokens - 1)],
            )
            ended = torch.isin(choice.tokens, ends)
            record.write(rows, taken, batch.open, choice, ended)
            batch.take(choice.tokens, ended)
            batch.drop_finished()
            batch.advance()
            batch.admit()
        return record.rollouts(prompts, group_size, heat)

    def _temperatures(self, group_size: int) -> Tensor:
        """(G) of the members of a group."""
        given = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        return torch.tensor([given[member % len(given)] for member in range(group_size)], dtype=torch.float32)

    def _check_fit(self, policy: Policy, prompts: PromptBatch, group_size: int) -> None:
        longest = int(prompts.mask.sum(1).max())
        if policy.context is not None and longest + self.max_new_tokens > policy.context:
            raise ValueError(
                f"a prompt of {longest} tokens and {self.max_new_tokens} new ones exceed the model's {policy.context} "
                "positions; lower sampler.max_new_tokens or shorten the prompts."
            )
        if 0 < self.max_rows < group_size:
            raise ValueError(
                f"sampler.max_rows is {self.max_rows} and a group has {group_size} completions, which are decoded together; "
                "raise it, or write 0 for no limit."
            )


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

    def write(self, rows: Tensor, taken: Tensor, open_: Tensor, choice: Choice, ended: Tensor) -> None:
        """One more token of each open row, behind the ``taken`` ones that it has."""
        if not bool(open_.all()):
            rows, taken, ended = rows[open_], taken[open_], ended[open_]
            choice = Choice(*(None if value is None else value[open_] for value in choice))  # type: ignore[arg-type]
        self.tokens[rows, taken] = choice.tokens
        self.logprobs[rows, taken] = choice.logprobs.float()
        self.entropies[rows, taken] = choice.entropies.float()
        self.lengths[rows] = taken + 1
        self.ended[rows] = ended
        if choice.kept is not None:
            place, ids = choice.kept.nonzero(as_tuple=True)
            self.kept.append(((rows * self.tokens.shape[1] + taken)[place], ids.int()))

    def rollouts(self, prompts: PromptBatch, group_size: int, temperature: Tensor) -> Rollouts:
        width = int(self.lengths.max())
        heat = temperature.masked_fill(temperature == 0, 1.0)  # greedy tokens have their untempered log-probability
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
