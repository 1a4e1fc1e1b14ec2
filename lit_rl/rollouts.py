"""What a rollout leaves behind: the sampled rows, and with them all that the learner needs to score them again.

Shapes are named in :mod:`lit_rl.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rl.types import PromptBatch, Sample


class Support:
    """The tokens that top-k and top-p left to choose from, at every sampled position; ragged, stored flat.

    Args:
        ids: (K) int32, the kept token ids of all positions one after another, rows first.
        counts: (N, T) int32, how many were kept at a position; 0 where nothing was sampled.
    """

    def __init__(self, ids: Tensor, counts: Tensor) -> None:
        self.ids, self.counts = ids, counts

    def select(self, rows: Tensor, width: int) -> Support:
        """The given rows (1-D index tensor), cut to ``width`` tokens; nothing may be kept behind the cut."""
        per_row = self.counts.sum(1)
        ends = per_row.cumsum(0).tolist()
        starts = [end - size for end, size in zip(ends, per_row.tolist(), strict=True)]
        pieces = [self.ids[starts[row] : ends[row]] for row in rows.tolist()]
        return Support(torch.cat(pieces) if pieces else self.ids[:0], self.counts[rows, :width])

    @classmethod
    def join(cls, supports: Sequence[Support]) -> Support:
        """The rows of several supports one behind another."""
        return cls(torch.cat([support.ids for support in supports]), _join_rows([support.counts for support in supports]))

    def to(self, device: torch.device | str) -> Support:
        return Support(self.ids.to(device), self.counts.to(device))


class Rollouts:
    """Sampled completions of some prompts: ``group_size`` rows a prompt, one after another.

    Args:
        prompts: the P prompts.
        group_size: G, rows per prompt.
        completion_ids: (N, T) sampled tokens, right-padded.
        lengths: (N) sampled tokens, the end token among them.
        truncated: (N) bool, True where the row ran into its limit before an end token.
        logprobs: (N, T) float32, log-probability of each sampled token under the distribution it was drawn from.
        entropies: (N, T) float32, entropy in nats of that distribution.
        temperature: (N) float32, the row's sampling temperature.
        support: what top-k and top-p kept, None without them.
        texts: N decoded completions, special tokens written out, the end token left off.
        rewards: (N) float32, zeros until scored.
        parts: the reward's named parts, each (N) float32.
        counted: (N) bool, False where the whole row is left out of the loss; all True by default.
        advantages: (N, T) float32, zeros until computed.
        old_logprobs: (N, T) float32, the learner's own log-probabilities before its first step, where they are asked for.
        ref_logprobs: (N, T) float32, log-probabilities under the reference policy.
        values: (N, T) float32, what a critic expected before each token.
        returns: (N, T) float32, what it is to expect there.
        focus: (N, T) bool, True at tokens that carry the policy gradient; None for all of them.
        prompt_index: (N) which of the prompts each row continues; default: groups of ``group_size`` one after another.
        copies: (N) float32, how many equal rows each row stands for (`merge_duplicates`); ones by default.
    """

    _BY_ROW = ("lengths", "truncated", "temperature", "rewards", "counted", "prompt_index", "copies")
    _TENSORS = (
        "completion_ids",
        "lengths",
        "truncated",
        "logprobs",
        "entropies",
        "temperature",
        "rewards",
        "counted",
        "advantages",
        "old_logprobs",
        "ref_logprobs",
        "values",
        "returns",
        "focus",
        "prompt_index",
        "copies",
    )

    def __init__(
        self,
        prompts: PromptBatch,
        group_size: int,
        completion_ids: Tensor,
        lengths: Tensor,
        truncated: Tensor,
        logprobs: Tensor,
        entropies: Tensor,
        temperature: Tensor,
        support: Support | None = None,
        texts: list[str] | None = None,
        rewards: Tensor | None = None,
        parts: dict[str, Tensor] | None = None,
        counted: Tensor | None = None,
        advantages: Tensor | None = None,
        old_logprobs: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        values: Tensor | None = None,
        returns: Tensor | None = None,
        focus: Tensor | None = None,
        prompt_index: Tensor | None = None,
        copies: Tensor | None = None,
    ) -> None:
        self.prompts, self.group_size = prompts, group_size
        self.completion_ids, self.lengths, self.truncated = completion_ids, lengths, truncated
        self.logprobs, self.entropies, self.temperature = logprobs, entropies, temperature
        self.support = support
        self.texts = texts or []
        self.parts = parts or {}
        zeros = torch.zeros(len(lengths), device=lengths.device, dtype=torch.float32)
        self.rewards = zeros if rewards is None else rewards
        self.counted = torch.ones_like(truncated) if counted is None else counted
        self.advantages = torch.zeros_like(logprobs) if advantages is None else advantages
        self.old_logprobs, self.ref_logprobs, self.focus = old_logprobs, ref_logprobs, focus
        self.values, self.returns = values, returns
        if prompt_index is None:
            prompt_index = torch.arange(len(prompts), device=lengths.device).repeat_interleave(group_size)
        self.prompt_index = prompt_index
        self.copies = zeros + 1 if copies is None else copies

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def whole_groups(self) -> bool:
        """Whether every prompt has its ``group_size`` rows, one group after another."""
        if len(self) != len(self.prompts) * self.group_size:
            return False
        return torch.equal(self.prompt_index, torch.arange(len(self), device=self.lengths.device) // self.group_size)

    @property
    def mask(self) -> Tensor:
        """(N, T) bool, True at sampled tokens: from the sampler's own lengths, never from token values."""
        return torch.arange(self.completion_ids.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @property
    def loss_mask(self) -> Tensor:
        """(N, T) bool, True at the tokens that count in the loss: the sampled ones of counted rows."""
        return self.mask & self.counted[:, None]

    def _tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in self._TENSORS}
        return {name: value for name, value in named.items() if value is not None}

    def to(self, device: torch.device | str) -> Rollouts:
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        parts = {name: value.to(device) for name, value in self.parts.items()}
        support = self.support.to(device) if self.support else None
        return Rollouts(self.prompts.to(device), self.group_size, **moved, support=support, texts=self.texts, parts=parts)

    def select(self, prompts: list[int]) -> Rollouts:
        """The whole groups of the given prompts, cut to the longest completion among them."""
        rows = torch.tensor([p * self.group_size + g for p in prompts for g in range(self.group_size)])
        picked = self._rows(rows.to(self.lengths.device), self.prompts.select(prompts))
        picked.prompt_index = torch.arange(len(prompts), device=self.lengths.device).repeat_interleave(self.group_size)
        return picked

    @classmethod
    def join(cls, rollouts: Sequence[Rollouts]) -> Rollouts:
        """The groups of several rollouts one behind another; all of them hold whole groups of one size.

        Prompts are padded on the left to the widest of them, what there is per token on the right.

        Raises:
            ValueError: where an optional field is filled in for some of them only.
        """
        filled = [each._filled() for each in rollouts]
        missing = {name for names in filled for name in names if not all(name in others for others in filled)}
        if missing:
            raise ValueError(f"rollouts to be joined must all have {', '.join(sorted(missing))}, or none: fill it in later.")
        tensors = {name for name in rollouts[0]._tensors() if name != "prompt_index"}  # which counts within one rollout
        supports = [each.support for each in rollouts if each.support]
        return cls(
            PromptBatch.join([each.prompts for each in rollouts]),
            rollouts[0].group_size,
            **{name: _join_rows([getattr(each, name) for each in rollouts]) for name in tensors},
            support=Support.join(supports) if supports else None,
            texts=[text for each in rollouts for text in each.texts],
            parts={name: torch.cat([each.parts[name] for each in rollouts]) for name in rollouts[0].parts},
        )

    def _filled(self) -> set[str]:
        """The names of the fields that are filled in."""
        others = {"support": self.support, "texts": self.texts}
        return {*self._tensors(), *self.parts, *(name for name, value in others.items() if value)}

    def merge_duplicates(self) -> Rollouts:
        """One row for rows that are equal in prompt, tokens and all that their loss depends on.

        ``copies`` counts them: weighted by it, the rows have the same loss and gradient as all of them.
        """
        floats = [self.logprobs, self.temperature[:, None], self.advantages, self.old_logprobs, self.ref_logprobs]
        floats += [self.values, self.returns]
        bits = torch.cat([value for value in floats if value is not None], dim=1).view(torch.int32)
        flags = [self.counted[:, None]] + ([] if self.focus is None else [self.focus])
        key = torch.cat([self.prompt_index[:, None], self.completion_ids, bits, *flags], dim=1)
        _, group, counts = key.unique(dim=0, return_inverse=True, return_counts=True)
        place = torch.arange(len(self), device=group.device)
        first = torch.full_like(counts, len(self)).scatter_reduce(0, group, place, "amin")
        rows, order = first.sort()
        merged = self._rows(rows, self.prompts)
        merged.copies = torch.zeros_like(self.copies[: len(counts)]).index_add(0, group, self.copies)[order]
        return merged

    def _rows(self, rows: Tensor, prompts: PromptBatch) -> Rollouts:
        width = int(self.lengths[rows].max()) if len(rows) else 0
        tensors = self._tensors().items()
        picked = {name: value[rows] if name in self._BY_ROW else value[rows, :width] for name, value in tensors}
        return Rollouts(
            prompts,
            self.group_size,
            **picked,
            support=self.support.select(rows, width) if self.support else None,
            texts=[self.texts[row] for row in rows.tolist()] if self.texts else None,
            parts={name: value[rows] for name, value in self.parts.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors, strings, numbers, lists and dicts only, so that ``torch.load(weights_only=True)`` opens it."""
        prompts = self.prompts
        return {
            "prompts": {
                "ids": prompts.ids,
                "mask": prompts.mask,
                "completions": prompts.completions,
                "samples": [list(sample) for sample in prompts.samples],
            },
            "group_size": self.group_size,
            "tensors": self._tensors(),
            "support": {"ids": self.support.ids, "counts": self.support.counts} if self.support else None,
            "texts": self.texts,
            "parts": self.parts,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Rollouts:
        prompts = state["prompts"]
        samples = [Sample(*fields) for fields in prompts["samples"]]
        return cls(
            PromptBatch(prompts["ids"], prompts["mask"], prompts["completions"], samples),
            state["group_size"],
            **state["tensors"],
            support=Support(**state["support"]) if state["support"] else None,
            texts=state["texts"],
            parts=state["parts"],
        )


def _join_rows(values: Sequence[Tensor]) -> Tensor:
    """(n) tensors, or (n, T) ones of several widths with zeros on their right, one behind another."""
    if values[0].dim() == 1:
        return torch.cat(list(values))
    width = max(value.shape[1] for value in values)
    return torch.cat([pad(value, (0, width - value.shape[1])) for value in values])
