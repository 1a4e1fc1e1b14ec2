"""Sampler: draws completions of prompts from the policy itself, in this process, without a copy of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rl.models.loading import long_rope_note
from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.decoding import DecodingBatch
from lit_rl.sampling.top_k_top_p import SampledTokens, sample_tokens
from lit_rl.support import Support
from lit_rl.text.stop_strings import StopWatch
from lit_rl.types import PromptBatch, Sample


class SampleKey(NamedTuple):
    """Key of the draws of a rollout; beside it they depend on each prompt's number only."""

    seed: int
    """The run's seed."""
    rollout: int
    """Number of the rollout."""
    round: int = 0
    """Number of the draws of this rollout so far, if prompts are drawn again."""


class Draws(NamedTuple):
    """Rows to draw: N completions of P prompts, in the order of prompts."""

    prompts: PromptBatch
    """The prompts as the policy is shown them."""
    counts: list[int]
    """(P) rows of each prompt, 1 or more."""
    uniforms: Tensor
    """(N, max_new_tokens) float32 in [0, 1), one number for each token."""
    temperatures: Tensor
    """(N) float32; 0 for all rows (greedy) or for none."""
    top_p: float | Tensor
    """One number for all rows, or (N) float32."""
    fields: dict[str, Tensor]
    """Fields of the rollouts that are known before sampling, each (N)."""


@dataclass
class Sampler:
    """Draws completions; callbacks may set its attributes between rollouts."""

    max_new_tokens: int = 256
    """Longest completion in tokens, the end token among them; longer completions are truncated."""
    temperature: float | list[float] = 1.0
    """Divisor of the logits; log-probabilities are of the distribution after it. 0 takes the most likely token (evaluation
    only). A list gives each member of a group a temperature of its own, in turn."""
    top_k: int = 0
    """Number of the most likely tokens to sample from; 0 keeps all."""
    top_p: float = 1.0
    """Probability that the most likely tokens to sample from hold together (nucleus sampling); 1 keeps all."""
    max_rows: int = 0
    """Completions decoded at a time on each rank, which bounds memory; waiting prompts take the place of finished groups. 0
    decodes all at once."""
    length_option: str = field(default="sampler.max_new_tokens", init=False, repr=False)
    """Name of the option that ``max_new_tokens`` comes from, for messages."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"sampler.max_new_tokens is {self.max_new_tokens}; write at least 1.")
        given = self._given_temperatures()
        if not given or min(given) < 0 or (len(given) > 1 and min(given) == 0):
            raise ValueError(
                f"sampler.temperature is {self.temperature}; write 0 (greedy) or more, or a list of numbers above 0."
            )
        if self.max_rows < 0:
            raise ValueError(f"sampler.max_rows is {self.max_rows}; write 0 (all at once) or more.")
        if self.top_k < 0:
            raise ValueError(f"sampler.top_k is {self.top_k}; write 0 (keep all) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampler.top_p is {self.top_p}; write a number above 0 and up to 1 (keep all).")

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms by their numbers in ``Rollouts.arm``; empty if all rows are drawn alike."""
        return ()

    def added_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Most tokens that the sampler adds to a prompt of the data."""
        return 0

    def check(self, group_size: int, samples: Sequence[Sample]) -> None:
        """Refuse, before the first step, a size of group or samples of the data that cannot be drawn."""

    @torch.no_grad()
    def sample(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Rollouts:
        """Sample ``group_size`` completions of every prompt.

        The policy is in eval mode meanwhile: its cache works there, also under gradient checkpointing.

        Args:
            policy: the policy.
            prompts: P prompts.
            group_size: G, completions per prompt; row p * G + g is the g-th completion of prompt p.
            key: keys the draws.

        Raises:
            ValueError: if a prompt and its completion do not fit into the model's positions, or a group into ``max_rows``.
        """
        draws = self.plan(policy, prompts, group_size, key)
        self._check_fit(policy, draws.prompts, max(draws.counts))
        training = policy.training
        policy.eval()
        try:
            return self._decode(policy, draws)
        finally:
            policy.train(training)

    def plan(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Draws:
        """Rows that `sample` draws; its arguments."""
        device = prompts.ids.device
        uniforms = draw_uniforms(key, prompts.numbers, group_size, self.max_new_tokens).to(device)  # (N, max_new_tokens)
        temperatures = self._group_temperatures(group_size).repeat(len(prompts)).to(device)  # (N)
        return Draws(prompts, [group_size] * len(prompts), uniforms, temperatures, self.top_p, {})

    def _decode(self, policy: Policy, draws: Draws) -> Rollouts:
        prompts, uniforms, temperatures, top_p = draws.prompts, draws.uniforms, draws.temperatures, draws.top_p
        device = prompts.ids.device
        # Temperatures of several kinds hold no 0, so rows are greedy all together or not at all.
        greedy, untempered = bool((temperatures == 0).any()), bool((temperatures == 1).all())
        ends = torch.tensor(policy.end_tokens, device=device)
        record = _Record(sum(draws.counts), self.max_new_tokens)
        watch = policy.stop_strings.watch(record.rows)
        batch = DecodingBatch(policy, prompts, draws.counts, self.max_new_tokens, self.max_rows)
        batch.admit()
        while batch.has_unfinished():
            rows, generated = batch.rows, batch.generated
            # A finished row that has not left yet may be full: it reads the last number again, and its token is dropped.
            column = generated.clamp(max=self.max_new_tokens - 1)
            sampled = sample_tokens(
                batch.logits,
                None if greedy or untempered else temperatures[rows],
                self.top_k,
                top_p[rows] if isinstance(top_p, Tensor) else top_p,
                None if greedy else uniforms[rows, column],
            )
            ended = torch.isin(sampled.tokens, ends)
            if policy.stop_strings:
                ended = ended | _stopped(watch, rows, sampled.tokens, batch.running & ~ended)
            record.write(rows, generated, batch.running, sampled, ended)
            batch.append(sampled.tokens, ended)
            batch.drop_finished()
            batch.advance()
            batch.admit()
        rollouts = record.rollouts(prompts, temperatures, draws.fields)
        if policy.stop_strings:
            rollouts.stopped = torch.tensor(watch.stopped, device=device)
        return rollouts

    def _given_temperatures(self) -> list[float]:
        return self.temperature if isinstance(self.temperature, list) else [self.temperature]

    def _group_temperatures(self, group_size: int) -> Tensor:
        """(G) temperature of each member of a group."""
        given = self._given_temperatures()
        return torch.tensor([given[member % len(given)] for member in range(group_size)], dtype=torch.float32)

    def _check_fit(self, policy: Policy, prompts: PromptBatch, group_size: int) -> None:
        longest = int(prompts.mask.sum(1).max())
        if policy.context is not None and longest + self.max_new_tokens > policy.context:
            raise ValueError(
                f"a prompt of {longest} tokens and {self.max_new_tokens} new ones exceed the model's {policy.context} "
                f"positions{long_rope_note(policy.causal_lm.config)}; lower {self.length_option} or shorten the prompts."
            )
        if 0 < self.max_rows < group_size:
            raise ValueError(
                f"sampler.max_rows is {self.max_rows} and a group has {group_size} completions, which are decoded together; "
                "raise it, or write 0 for no limit."
            )


def _stopped(watch: StopWatch, rows: Tensor, tokens: Tensor, running: Tensor) -> Tensor:
    """(n) bool, True at running rows that a stop string ends with the given tokens (n)."""
    triples = zip(rows.tolist(), tokens.tolist(), running.tolist(), strict=True)
    return torch.tensor([runs and watch.add(row, token) for row, token, runs in triples], device=tokens.device)


def draw_uniforms(key: SampleKey, numbers: list[int], group_size: int, length: int) -> Tensor:
    """(P * G, length) float32 in [0, 1), by one generator per prompt, keyed by (seed, rollout, the prompt's number, round).

    Args:
        key: the rest of the generators' key.
        numbers: P numbers of prompts in their data set.
        group_size: G.
        length: numbers per row.
    """
    draws = [
        np.random.default_rng([key.seed, key.rollout, number, key.round]).random((group_size, length), dtype=np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.concatenate(draws))


class _Record:
    """Record of sampled tokens, step by step, from which rollouts are made.

    Tokens are kept with their place in the flattened rollouts, so that rows may leave the batch on the way.

    Args:
        rows: N.
        width: most tokens of a row.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self.steps: list[tuple[Tensor, ...]] = []  # place, token, log-probability, entropy, whether it is an end: (n) each
        self.kept: list[tuple[Tensor, Tensor]] = []  # place, and a token id that was kept there

    def write(self, rows: Tensor, generated: Tensor, running: Tensor, sampled: SampledTokens, ended: Tensor) -> None:
        """Add a token to each running row.

        Args:
            rows: (n) numbers of the rollouts' rows.
            generated: (n) tokens that each row had before.
            running: (n) bool, False at finished rows.
            sampled: the tokens.
            ended: (n) bool, True at end tokens.
        """
        # Tokens of finished rows go to one place after all others, which is cut off in the end.
        places = torch.where(running, rows * self.width + generated, self.rows * self.width)
        self.steps.append((places, sampled.tokens, sampled.logprobs.float(), sampled.entropies.float(), ended))
        if sampled.kept is not None:
            place, ids = (sampled.kept & running[:, None]).nonzero(as_tuple=True)
            self.kept.append((places[place], ids.int()))

    def rollouts(self, prompts: PromptBatch, temperatures: Tensor, fields: dict[str, Any]) -> Rollouts:
        """Rollouts of all recorded tokens, cut to the longest row; ``temperatures`` and other fields are (N)."""
        places, tokens, logprobs, entropies, ended = (torch.cat(column) for column in zip(*self.steps, strict=True))
        rows, longest = self.rows, self.width
        lengths = places.bincount(minlength=rows * longest + 1)[:-1].view(rows, longest).sum(1)  # (N)
        width = int(lengths.max())

        def table(values: Tensor) -> Tensor:
            flat = values.new_zeros(rows * longest + 1).index_copy(0, places, values)
            # A copy, since a view would hold the memory of all `max_new_tokens` columns.
            return flat[:-1].view(rows, longest)[:, :width].clone()  # (N, T)

        return Rollouts(
            prompts,
            completion_ids=table(tokens),
            lengths=lengths,
            truncated=~table(ended).any(1),
            logprobs=table(logprobs),
            entropies=table(entropies),
            temperature=temperatures.masked_fill(temperatures == 0, 1.0),  # greedy log-probabilities are untempered
            support=self._support(width),
            **fields,
        )

    def _support(self, width: int) -> Support | None:
        if not self.kept:
            return None
        places = torch.cat([place for place, _ in self.kept])
        order = places.argsort(stable=True)  # they were recorded step by step, and are stored row by row
        ids = torch.cat([ids for _, ids in self.kept])[order]
        counts = places.bincount(minlength=self.rows * self.width).view(self.rows, self.width)
        return Support(ids, counts[:, :width].int())
