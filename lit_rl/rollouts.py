"""Rollouts: sampled completions of prompts, with all that the learner needs to score them again.

Shapes are named in :mod:`lit_rl.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from lit_rl.fields import field, fields_of
from lit_rl.groups import per_group, rows_of, within_groups
from lit_rl.support import Support, join_rows
from lit_rl.types import PromptBatch, Sample

PerRow: TypeAlias = Tensor
"""(N), one value for each row."""
PerToken: TypeAlias = Tensor
"""(N, T), one value for each token; 0 after a row's end."""


class Rollouts:
    """Sampled completions of prompts, one row each.

    Rows of one ``group`` are compared with each other. A group usually holds the completions of one prompt; it may hold the
    completions of several prompts, and groups may differ in size. All rows of a prompt are in one group.

    The fields below are given by keyword. A field without default raises an AttributeError if it is read before it is filled;
    `has` tells whether it is filled.

    Args:
        prompts: the P prompts.
        texts: N decoded completions, special tokens written out, without the end token.
        support: tokens that top-k and top-p kept; None without them.
        parts: named parts of the reward, each (N) float32.
        fields: tensors by name, as declared below; None leaves a field as if it was not given.

    Raises:
        TypeError: if a field is not declared, or a required field is missing.
    """

    # Sampling. At tokens that were not sampled, log-probabilities and entropies are finite numbers without meaning.
    completion_ids: PerToken = field(required=True)
    """Token ids, right-padded."""
    lengths: PerRow = field(required=True)
    """Tokens of each row, the end token among them."""
    truncated: PerRow = field(required=True)
    """bool, True if the row ran into its limit before an end token."""
    stopped: PerRow = field(default=lambda rows: torch.zeros_like(rows.truncated))
    """bool, True if a stop string ended the row, whose last token then belongs to its text; default False."""
    logprobs: PerToken = field(required=True)
    """float32, log-probability of each sampled token under the distribution that it was drawn from."""
    entropies: PerToken = field(required=True)
    """float32, entropy of that distribution in nats."""
    temperature: PerRow = field(required=True)
    """float32, sampling temperature."""
    prompt: PerRow = field(default=lambda rows: _in_order(len(rows), len(rows.prompts), rows.lengths.device))
    """Number of the prompt that each row continues; default: the same number of rows for each prompt, in order."""
    group: PerRow = field(default=lambda rows: rows.prompt)
    """Number of each row's group, from 0 without gaps; default: one group for each prompt."""
    arm: PerRow = field()
    """Number of the arm that drew each row (`lit_rl.sampling.arms`); unfilled without arms."""
    sampled: PerToken = field(default=lambda rows: rows.mask)
    """bool, True at tokens that the policy sampled, False at tokens written by others (tool output) and after the end;
    default: all tokens of a row."""
    multiplicity: PerRow = field(default=lambda rows: torch.ones_like(rows.temperature))
    """float32, number of equal rows that a row stands for (`merge_duplicates`); default 1."""

    # Reward.
    rewards: PerRow = field(default=lambda rows: torch.zeros_like(rows.temperature))
    """float32; default 0."""
    in_loss: PerRow = field(default=lambda rows: torch.ones_like(rows.truncated))
    """bool, False if the whole row is left out of the loss; default True."""
    scored: PerRow = field(default=lambda rows: torch.ones_like(rows.truncated))
    """bool, False if the reward failed on the row, whose reward of 0 then counts nowhere; default True."""
    gradient_mask: PerToken = field()
    """bool, True at tokens that carry the policy gradient; unfilled if all do."""

    # Reference and learner, before the first step on the rollout.
    ref_logprobs: PerToken = field()
    """float32, log-probabilities under the reference policy."""
    old_logprobs: PerToken = field()
    """float32, log-probabilities under the learner itself."""

    # Advantages, and the critic's part in them.
    advantages: PerToken = field(default=lambda rows: torch.zeros_like(rows.logprobs))
    """float32; default 0."""
    values: PerToken = field()
    """float32, return expected by the critic before each token."""
    returns: PerToken = field()
    """float32, target of the critic."""

    def __init__(
        self,
        prompts: PromptBatch,
        *,
        texts: Sequence[str] = (),
        support: Support | None = None,
        parts: dict[str, Tensor] | None = None,
        **fields: Tensor | None,
    ) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        declared = fields_of(type(self))
        if unknown := given.keys() - declared.keys():
            raise TypeError(f"Rollouts have no field {', '.join(sorted(unknown))}; known are {', '.join(declared)}.")
        if missing := {name for name, each in declared.items() if each.required} - given.keys():
            raise TypeError(f"Rollouts need {', '.join(sorted(missing))}.")
        self.prompts = prompts
        self.texts, self.support, self.parts = list(texts), support, dict(parts or {})
        vars(self).update(given)
        # In the order of declaration: a default reads the fields above it.
        for name, each in declared.items():
            if each.default and name not in given:
                setattr(self, name, each.default(self))

    def __len__(self) -> int:
        return len(self.lengths)

    def has(self, name: str) -> bool:
        """Whether a field is filled."""
        return name in vars(self)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Filled fields by name."""
        return {name: vars(self)[name] for name in fields_of(type(self)) if self.has(name)}

    # --- masks and groups ----------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor:
        """(N, T) bool, True at a row's own tokens: from recorded lengths, never from token values."""
        return torch.arange(self.completion_ids.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @property
    def loss_mask(self) -> Tensor:
        """(N, T) bool, True at tokens that count in the loss: sampled tokens of rows in the loss."""
        return self.sampled & self.in_loss[:, None]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.group.max()) + 1 if len(self) else 0

    @property
    def rows_per_prompt(self) -> int | None:
        """Rows of each prompt, if all prompts have as many and rows stand in the order of prompts; else None."""
        size, rest = divmod(len(self), max(len(self.prompts), 1))
        in_order = not rest and torch.equal(self.prompt, _in_order(len(self), len(self.prompts), self.prompt.device))
        return size if in_order else None

    @property
    def samples(self) -> list[Sample]:
        """The sample of each row."""
        return [self.prompts.samples[number] for number in self.prompt.tolist()]

    def per_group(self, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(num_groups, ...) from the values (N, ...) of each group; ``function``: (n, size, ...) -> (n, ...)."""
        return per_group(self.group.to(values.device), values, function)

    def within_groups(self, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, ...) from the values (N, ...) of each row's own group; ``function``: (n, size, ...) -> (n, size, ...)."""
        return within_groups(self.group.to(values.device), values, function)

    def completions(self) -> list[list[int]]:
        """Token ids of each row without its end token."""
        # Rows that ran into their limit or into a stop string have no end token.
        lengths = (self.lengths - (~self.truncated & ~self.stopped).long()).tolist()
        return [row[:length] for row, length in zip(self.completion_ids.tolist(), lengths, strict=True)]

    # --- selecting and joining -----------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> Self:
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        parts = {name: value.to(device) for name, value in self.parts.items()}
        support = self.support.to(device) if self.support else None
        return type(self)(self.prompts.to(device), texts=self.texts, support=support, parts=parts, **moved)

    def rows_of(self, groups: Sequence[int]) -> Tensor:
        """Numbers of the rows of the given groups, one group after another: a 1-D index tensor."""
        by_group = rows_of(self.group)
        return torch.cat([by_group[number] for number in groups])

    def select(self, groups: Sequence[int]) -> Self:
        """The given groups in the given order, cut to the longest completion among them, with the prompts that they need."""
        by_group = rows_of(self.group)
        rows = torch.cat([by_group[number] for number in groups])  # (n)
        needed = list(dict.fromkeys(self.prompt[rows].tolist()))  # in order of use, each once
        picked = self._rows(rows, self.prompts.select(needed))
        place = torch.zeros(len(self.prompts), dtype=torch.long, device=rows.device)  # (P) old prompt number -> new
        place[needed] = torch.arange(len(needed), device=rows.device)
        picked.prompt = place[self.prompt[rows]]
        picked.group = torch.cat([torch.full_like(by_group[number], place) for place, number in enumerate(groups)])
        return picked

    def drop_unscored(self) -> Self:
        """Rows that the reward has scored; a group without any keeps its rows, which are not in the loss."""
        known = self.per_group(self.scored, lambda group: group.any(1))[self.group]  # (N)
        dropped = ~self.scored & known
        return self._rows((~dropped).nonzero()[:, 0], self.prompts) if bool(dropped.any()) else self

    @classmethod
    def join(cls, rollouts: Sequence[Self]) -> Self:
        """The groups of several rollouts, one rollout after another.

        Prompts are padded on the left to the widest, values per token on the right.

        Raises:
            ValueError: if an optional field is filled in some of the rollouts only.
        """
        filled = [each._filled() for each in rollouts]
        missing = {name for names in filled for name in names if not all(name in others for others in filled)}
        if missing:
            raise ValueError(f"rollouts to be joined must all have {', '.join(sorted(missing))}, or none: fill it in later.")
        tensors = {name: join_rows([each.tensors[name] for each in rollouts]) for name in rollouts[0].tensors}
        tensors["prompt"] = _join_numbers([(each.prompt, len(each.prompts)) for each in rollouts])
        tensors["group"] = _join_numbers([(each.group, each.num_groups) for each in rollouts])
        supports = [each.support for each in rollouts if each.support]
        return cls(
            PromptBatch.join([each.prompts for each in rollouts]),
            texts=[text for each in rollouts for text in each.texts],
            support=Support.join(supports) if supports else None,
            parts={name: torch.cat([each.parts[name] for each in rollouts]) for name in rollouts[0].parts},
            **tensors,
        )

    def _filled(self) -> set[str]:
        """Names of all that is filled."""
        others = {"support": self.support, "texts": self.texts}
        return {*self.tensors, *self.parts, *(name for name, value in others.items() if value)}

    def merge_duplicates(self) -> Self:
        """One row for rows that are equal in every field.

        Weighted by ``multiplicity``, the rows left have the same loss and gradient as all rows.
        """
        columns = []
        for name, value in self.tensors.items():
            if name != "multiplicity":
                table = value if value.dim() == 2 else value[:, None]  # (N, T) or (N, 1)
                columns.append(table.view(torch.int32) if table.dtype == torch.float32 else table)  # floats by their bits
        _, same, counts = torch.unique(torch.cat(columns, dim=1), dim=0, return_inverse=True, return_counts=True)
        place = torch.arange(len(self), device=same.device)
        # `unique` sorts by value; rows must keep their own order, and so the order of groups.
        first = torch.full_like(counts, len(self)).scatter_reduce(0, same, place, "amin")
        rows, order = first.sort()  # (n) each, n different rows
        merged = self._rows(rows, self.prompts)
        merged.multiplicity = torch.zeros_like(self.multiplicity[: len(counts)]).index_add(0, same, self.multiplicity)[order]
        return merged

    def _rows(self, rows: Tensor, prompts: PromptBatch) -> Self:
        """The given rows, cut to the longest of them."""
        width = int(self.lengths[rows].max()) if len(rows) else 0
        picked = {name: value[rows, :width] if value.dim() == 2 else value[rows] for name, value in self.tensors.items()}
        return type(self)(
            prompts,
            texts=[self.texts[row] for row in rows.tolist()] if self.texts else (),
            support=self.support.select(rows, width) if self.support else None,
            parts={name: value[rows] for name, value in self.parts.items()},
            **picked,
        )

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors, strings, numbers, lists and dicts only, so that ``torch.load(weights_only=True)`` opens it."""
        return {
            "prompts": self.prompts.state_dict(),
            "tensors": self.tensors,
            "support": {"ids": self.support.ids, "counts": self.support.counts} if self.support else None,
            "texts": self.texts,
            "parts": self.parts,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Rollouts from a `state_dict`."""
        return cls(
            PromptBatch.from_state(state["prompts"]),
            texts=state["texts"],
            support=Support(**state["support"]) if state["support"] else None,
            parts=state["parts"],
            **state["tensors"],
        )


def _join_numbers(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Numbers (n) of several rollouts as one (N); each comes with the count of things that it numbers."""
    counts = [count for _, count in parts]
    # Counts and not largest numbers: a rollout may hold prompts that no row continues.
    return torch.cat([numbers + sum(counts[:place]) for place, (numbers, _) in enumerate(parts)])


def _in_order(rows: int, prompts: int, device: torch.device) -> Tensor:
    """(N) prompt numbers of rows that belong to the prompts in order, as many to each."""
    return torch.arange(prompts, device=device).repeat_interleave(rows // max(prompts, 1))
