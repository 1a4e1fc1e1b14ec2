"""Completions of prompts, sampled in this process from the policy itself: no copy of the weights, nothing to keep in step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts, Support
from lit_rl.sampling.decoding import DecodingBatch
from lit_rl.sampling.top_k_top_p import Choice, sample_tokens
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
        greedy, plain = bool((heat == 0).any()), bool((heat == 1).all())
        ends = torch.tensor(policy.end_tokens, device=device)
        record = _Record(len(prompts) * group_size, self.max_new_tokens)
        batch = DecodingBatch(policy, prompts, group_size, self.max_new_tokens, self.max_rows)
        batch.admit()
        while batch.anything_left():
            rows, taken = batch.rows, batch.taken
            choice = sample_tokens(
                batch.logits,
                None if greedy or plain else heat[rows],
                self.top_k,
                self.top_p,
                None if greedy else uniforms[rows, taken.clamp(max=self.max_new_tokens - 1)],
            )
            ended = torch.isin(choice.tokens, ends)
            record.write(rows, taken, batch.open, choice, ended)
            batch.take(choice.tokens, ended)
            batch.drop_finished()
            batch.advance()
            batch.admit()
        return record.rollouts(prompts, heat)

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

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self.steps: list[tuple[Tensor, ...]] = []  # place in the flattened rollout, token, log-probability, entropy, end
        self.kept: list[tuple[Tensor, Tensor]] = []  # place, and an id that was kept there

    def write(self, rows: Tensor, taken: Tensor, open_: Tensor, choice: Choice, ended: Tensor) -> None:
        """One more token of each open row, behind the ``taken`` ones that it has."""
        # A closed row's token goes to a place behind all others, which is cut off in the end.
        places = torch.where(open_, rows * self.width + taken, self.rows * self.width)
        self.steps.append((places, choice.tokens, choice.logprobs.float(), choice.entropies.float(), ended))
        if choice.kept is not None:
            place, ids = (choice.kept & open_[:, None]).nonzero(as_tuple=True)
            self.kept.append((places[place], ids.int()))

    def rollouts(self, prompts: PromptBatch, temperature: Tensor) -> Rollouts:
        places, tokens, logprobs, entropies, ended = (torch.cat(column) for column in zip(*self.steps, strict=True))
        rows, longest = self.rows, self.width
        lengths = places.bincount(minlength=rows * longest + 1)[:-1].view(rows, longest).sum(1)
        width = int(lengths.max())

        def table(values: Tensor) -> Tensor:
            flat = values.new_zeros(rows * longest + 1).index_copy(0, places, values)
            return flat[:-1].view(rows, longest)[:, :width].clone()

        return Rollouts(
            prompts,
            completion_ids=table(tokens),
            lengths=lengths,
            truncated=~table(ended).any(1),
            logprobs=table(logprobs),
            entropies=table(entropies),
            temperature=temperature.masked_fill(temperature == 0, 1.0),  # greedy log-probabilities are untempered
            support=self._support(width),
        )

    def _support(self, width: int) -> Support | None:
        if not self.kept:
            return None
        places = torch.cat([place for place, _ in self.kept])
        order = places.argsort(stable=True)  # from step by step to row by row
        ids = torch.cat([ids for _, ids in self.kept])[order]
        counts = places.bincount(minlength=self.rows * self.width).view(self.rows, self.width)
        return Support(ids, counts[:, :width].int())
