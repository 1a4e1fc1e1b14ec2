"""Continuous batching (Orca, OSDI 2022): finished rows leave the batch that is decoded, waiting prompts take their place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from lit_rl.kernels.kv_cache import join_caches, preallocate_cache, repeat_cache, select_cache, trim_cache
from lit_rl.kernels.shared_prompts import MIN_SHARED_TOKENS, Groups, SharedPromptLayer, share_prompts
from lit_rl.models.policy import Policy
from lit_rl.types import PromptBatch

PER_ROW = ("rows", "generated", "running", "tokens", "lengths", "logits")
"""Attributes of a batch with one entry per row, besides mask and cache."""


class DecodingBatch:
    """Completions of some prompts while they grow by one token a step.

    A group is admitted and prefilled together. Its rows leave one by one; the batch is copied for it only when enough of them
    have finished, so a row may be finished and still be here.

    Args:
        policy: the policy.
        prompts: P prompts.
        counts: rows of each prompt, 1 or more.
        limit: tokens after which a row is finished.
        max_rows: rows decoded at a time; 0 for all.
        shared: whether the keys of a prompt are held once per group; default: if the policy can and the prompts are long
            enough.
    """

    rows: Tensor
    """(n) numbers of the rows in the batch, in the order of prompts."""
    generated: Tensor
    """(n) tokens that each row has."""
    running: Tensor
    """(n) bool, False at rows that are finished and have not left yet."""
    num_running: int
    """Number of running rows."""
    tokens: Tensor
    """(n) last token of each row."""
    logits: Tensor
    """(n, V) logits of the next token."""
    mask: Tensor
    """(n, S) bool over the columns of the cache, rows aligned on the right."""
    lengths: Tensor
    """(n) tokens of each row's prompt."""
    cache: DynamicCache
    """Keys and values of the rows."""

    def __init__(
        self, policy: Policy, prompts: PromptBatch, counts: Sequence[int], limit: int, max_rows: int, shared: bool | None = None
    ) -> None:
        self.policy, self.prompts, self.counts, self.limit = policy, prompts, list(counts), limit
        self.group_size = group_size = max(counts)  # places that a prompt takes, also if it has fewer rows
        self._first_rows = [0, *accumulate(counts)]  # of each prompt
        self.capacity = max(1, max_rows // group_size) if max_rows else len(prompts)  # in prompts
        self.admitted = 0  # prompts; those after them are waiting
        pays = policy.capabilities.shares_keys and group_size > 1 and limit > 1 and prompts.ids.shape[1] >= MIN_SHARED_TOKENS
        self.shared = pays if shared is None else shared
        self.groups: Groups | None = None
        # Weights that are gathered layer by layer need every rank to run the same number of forwards.
        self.lockstep = policy.spec.unshard == "layer" and torch.distributed.is_initialized()
        self.rows = self.running = torch.zeros(0, device=prompts.ids.device)
        self.num_running = 0

    def has_unfinished(self) -> bool:
        """Whether a row is running here, or in lockstep on any rank."""
        return self._on_any_rank(self.num_running > 0)

    def admit(self) -> None:
        """Admit waiting prompts, once a quarter of the places is free: each time the whole cache is copied."""
        waiting = len(self.prompts) - self.admitted
        # Rounded up: the running rows count as if they filled whole groups, so rows never exceed the capacity.
        free = self.capacity - -(-self.num_running // self.group_size)
        wants = min(free, waiting) > 0 and (self.num_running == 0 or free >= min(self.capacity / 4, waiting))
        if wants:
            self._prefill(list(range(self.admitted, self.admitted + min(free, waiting))))
        if self.lockstep and self._on_any_rank(wants) and not wants:
            self.policy.prefill(self.prompts.select([0]))  # its collectives are what the other ranks wait for

    def append(self, tokens: Tensor, ended: Tensor) -> None:
        """Give each row its next token (n); ``ended`` (n) is True at end tokens."""
        self.tokens, self.generated = tokens, self.generated + self.running.long()
        self.running = self.running & ~ended & (self.generated < self.limit)
        self.num_running = int(self.running.sum())

    def drop_finished(self) -> None:
        """Let finished rows leave, once they are a share of the batch that is worth the copying."""
        finished = len(self.running) - self.num_running
        # A batch without running rows stays: in lockstep it is run for the sake of the other ranks.
        if self.num_running and finished * (8 if self.shared else 32) >= len(self.running):
            self._drop()

    def advance(self) -> None:
        """Run the tokens that were appended last, for the logits of the next ones."""
        if not self._on_any_rank(self.num_running > 0):
            return
        # Finished rows get a column as well; nothing reads their logits.
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        positions = self.lengths + self.generated - 1
        if self.groups is not None:
            # Before the layers run, as they read the row's length with this token in it.
            self.groups.step()
        self.logits = self.policy.decode_step(self.tokens, self.mask, positions, self.cache)

    def _drop(self) -> None:
        if self.num_running == len(self.running):
            return
        # Shared prompts need their rows in order; otherwise as few rows as possible move.
        stay = self.running.nonzero()[:, 0] if self.shared else _fill_holes(self.running)
        select_cache(self.cache, stay)
        if self.groups is not None:
            prompts = self.groups.select(stay)
            for layer in self.cache.layers:
                if isinstance(layer, SharedPromptLayer):
                    layer.select_prompts(prompts)
        self.mask = self.mask[stay]
        for name in PER_ROW:
            setattr(self, name, getattr(self, name)[stay])

    def _prefill(self, numbers: list[int]) -> None:
        """Prefill prompts; their rows join the running ones, or replace the batch if none is running."""
        self.admitted += len(numbers)
        prompts, device = self.prompts.select(numbers), self.rows.device
        logits, cache = self.policy.prefill(prompts)  # (p, V) for p prompts
        counts = torch.tensor([self.counts[number] for number in numbers], device=device)  # (p)
        # One number if it serves: a tensor makes a GPU wait for it.
        repeats = self.group_size if len(set(self.counts)) == 1 else counts
        groups = Groups(prompts.mask, self.group_size, counts) if self.shared else None
        if groups is not None:
            share_prompts(cache, groups, self.limit)
        if self.limit > 1:  # otherwise no token is run on the cache, and groups are often large
            repeat_cache(cache, repeats)
            preallocate_cache(cache, self.limit)
        mask = prompts.mask.repeat_interleave(repeats, dim=0)  # (n, L)
        first = self._first_rows[numbers[0]]  # prompts are admitted in order, so their rows are consecutive
        rows = torch.arange(first, first + len(mask), device=device)
        new = {
            "rows": rows,
            "generated": torch.zeros_like(rows),
            "running": torch.ones_like(rows, dtype=torch.bool),
            "tokens": torch.zeros_like(rows),
            "lengths": mask.sum(1),
            "logits": logits.repeat_interleave(repeats, dim=0),
        }
        if self.num_running > 0:
            # Finished rows leave in `_join`, so mask and attributes are read after it.
            self._join(cache, groups)
            new = {name: torch.cat([getattr(self, name), value]) for name, value in new.items()}
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([pad(each, (width - each.shape[1], 0)) for each in (self.mask, mask)])
        else:
            self.cache, self.groups = cache, groups
        self.mask = mask
        for name, value in new.items():
            setattr(self, name, value)
        self.num_running = int(self.running.sum())

    def _join(self, cache: DynamicCache, groups: Groups | None) -> None:
        self._drop()
        unused = int((~self.mask).all(0).long().cumprod(0).sum())  # columns before any row's first token
        self.mask = self.mask[:, unused:]
        trim_cache(self.cache, unused)
        join_caches(self.cache, cache)
        if self.groups is not None and groups is not None:
            self.groups.join(groups)

    def _on_any_rank(self, here: bool) -> bool:
        """Whether it is so here, or in lockstep on any rank."""
        if not self.lockstep:
            return here
        flag = torch.tensor(int(here), device=self.rows.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)


def _fill_holes(keep: Tensor) -> Tensor:
    """Kept places of (n) bool, the last of them where others are dropped, so that few rows of a cache move.

    Example: 1 0 1 1 keeps the places 0 3 2.
    """
    count = int(keep.sum())
    places = torch.arange(count, device=keep.device)
    places[~keep[:count]] = keep[count:].nonzero()[:, 0] + count
    return places
