"""The rows that are being decoded: finished ones leave, waiting prompts take their place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from lit_rl.kernels.kv_cache import join_caches, make_room, repeat_cache, select_cache, trim_cache
from lit_rl.kernels.shared_prompts import SHORTEST, Groups, SharedPromptLayer, share_prompts
from lit_rl.models.policy import Policy
from lit_rl.types import PromptBatch


class DecodingBatch:
    """Completions of some prompts while they grow by one token a step; a group enters and is prefilled together.

    Args:
        policy: whose cache it is.
        prompts: all prompts.
        group_size: G, rows per prompt.
        limit: tokens after which a row is finished.
        max_rows: rows decoded at a time, 0 for all.
        shared: whether a group's prompt is held once; default: where the policy can and its prompts are long enough.
    """

    rows: Tensor
    """(n) which of the P * G completions each row is."""
    taken: Tensor
    """(n) tokens that each row has."""
    open: Tensor
    """(n) bool, False where a row is finished and has not left yet."""
    num_open: int
    """How many are open."""
    tokens: Tensor
    """(n) each row's last token."""
    logits: Tensor
    """(n, V) of the next one."""
    mask: Tensor
    """(n, S) bool over the columns of the cache, rows aligned on the right."""
    lengths: Tensor
    """(n) tokens of the row's prompt."""
    cache: DynamicCache
    """Keys and values of the rows."""

    def __init__(
        self, policy: Policy, prompts: PromptBatch, group_size: int, limit: int, max_rows: int, shared: bool | None = None
    ) -> None:
        self.policy, self.prompts, self.group_size, self.limit = policy, prompts, group_size, limit
        self.capacity = max(1, max_rows // group_size) if max_rows else len(prompts)  # in prompts
        self.waiting = 0  # number of the first prompt that has not entered
        worth_it = policy.capabilities.shares_keys and group_size > 1 and limit > 1 and prompts.ids.shape[1] >= SHORTEST
        self.shared = worth_it if shared is None else shared
        self.groups: Groups | None = None
        self.lockstep = policy.spec.unshard == "layer" and torch.distributed.is_initialized()
        self.rows = self.open = torch.zeros(0, device=prompts.ids.device)
        self.num_open = 0

    def anything_left(self) -> bool:
        """Whether a row is open here, or on any rank where all must run the same number of forwards."""
        return self._on_any_rank(self.num_open > 0)

    def admit(self) -> None:
        """Let waiting prompts in, once a quarter of the places is free: each time the whole cache is copied."""
        left = len(self.prompts) - self.waiting
        free = self.capacity - -(-self.num_open // self.group_size)
        wants = min(free, left) > 0 and (self.num_open == 0 or free >= min(self.capacity / 4, left))
        if wants:
            self._enter(list(range(self.waiting, self.waiting + min(free, left))), join=self.num_open > 0)
        if self.lockstep and self._on_any_rank(wants) and not wants:
            self.policy.prefill(self.prompts.select([0]))  # for its collectives

    def take(self, tokens: Tensor, ended: Tensor) -> None:
        """Each row's next token, and whether it is an end."""
        self.tokens, self.taken = tokens, self.taken + self.open.long()
        self.open = self.open & ~ended & (self.taken < self.limit)
        self.num_open = int(self.open.sum())

    def drop_finished(self) -> None:
        """Finished rows leave together, once they are a share of the batch that is worth the copying."""
        closed = len(self.open) - self.num_open
        if self.num_open and closed * (8 if self.shared else 32) >= len(self.open):
            self._drop()

    def advance(self) -> None:
        """Run the tokens taken last, for the logits of the next ones."""
        if not self._on_any_rank(self.num_open > 0):
            return
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        positions = self.lengths + self.taken - 1
        if self.groups is not None:
            self.groups.step()
        self.logits = self.policy.decode(self.tokens, self.mask, positions, self.cache)

    def _drop(self) -> None:
        if self.num_open == len(self.open):
            return
        stay = self.open.nonzero()[:, 0] if self.shared else _fill_holes(self.open)
        select_cache(self.cache, stay)
        if self.groups is not None:
            prompts = self.groups.select(stay)
            for layer in self.cache.layers:
                if isinstance(layer, SharedPromptLayer):
                    layer.select_prompts(prompts)
        self.rows, self.taken, self.open = self.rows[stay], self.taken[stay], self.open[stay]
        self.tokens, self.mask, self.lengths = self.tokens[stay], self.mask[stay], self.lengths[stay]
        self.logits = self.logits[stay]

    def _enter(self, numbers: list[int], join: bool) -> None:
        """Prefill prompts; their rows stand beside the open ones, or alone where there are none."""
        self.waiting += len(numbers)
        prompts, device = self.prompts.select(numbers), self.rows.device
        logits, cache = self.policy.prefill(prompts)
        groups = Groups(prompts.mask, self.group_size) if self.shared else None
        if groups is not None:
            share_prompts(cache, groups, self.limit)
        if self.limit > 1:  # otherwise no token is run on it, and groups are often large
            repeat_cache(cache, self.group_size)
            make_room(cache, self.limit)
        mask = prompts.mask.repeat_interleave(self.group_size, dim=0)
        first = numbers[0] * self.group_size
        rows = torch.arange(first, first + len(mask), device=device)
        fresh = {
            "rows": rows,
            "taken": torch.zeros_like(rows),
            "open": torch.ones_like(rows, dtype=torch.bool),
            "tokens": torch.zeros_like(rows),
            "lengths": mask.sum(1),
            "logits": logits.repeat_interleave(self.group_size, dim=0),
        }
        if join:
            self._join(cache, groups)
            fresh = {name: torch.cat([getattr(self, name), value]) for name, value in fresh.items()}
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([pad(each, (width - each.shape[1], 0)) for each in (self.mask, mask)])
        else:
            self.cache, self.groups = cache, groups
        self.mask = mask
        for name, value in fresh.items():
            setattr(self, name, value)
        self.num_open = int(self.open.sum())

    def _join(self, cache: DynamicCache, groups: Groups | None) -> None:
        self._drop()
        unused = int((~self.mask).all(0).long().cumprod(0).sum())  # columns before any row's first token
        self.mask = self.mask[:, unused:]
        trim_cache(self.cache, unused)
        join_caches(self.cache, cache)
        if self.groups is not None and groups is not None:
            self.groups.join(groups)

    def _on_any_rank(self, here: bool) -> bool:
        """Where weights are gathered layer by layer, every rank must run the same number of forwards."""
        if not self.lockstep:
            return here
        flag = torch.tensor(int(here), device=self.rows.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)


def _fill_holes(keep: Tensor) -> Tensor:
    """(n) bool -> the kept places, the last of them in those of the dropped, so that few rows of a cache move.

    Example: 1 0 1 1 keeps the places 0 3 2.
    """
    count = int(keep.sum())
    places = torch.arange(count, device=keep.device)
    places[~keep[:count]] = keep[count:].nonzero()[:, 0] + count
    return places
