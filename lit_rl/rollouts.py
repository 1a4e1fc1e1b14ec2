"""Rollouts: sampled completions of some prompts, with all that the learner needs to score them again.

Shapes are named in :mod:`lit_rl.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from lit_rl.groups import per_group, within_groups
from lit_rl.support import Support, join_rows
from lit_rl.types import PromptBatch, Sample

PerRow: TypeAlias = Tensor
"""(N), one value for each row."""
PerToken: TypeAlias = Tensor
"""(N, T), one value for each token, 0 after a row's end."""


class Rollouts:
    """Sampled completions of some prompts, one row each.

    Rows of one ``group`` are compared with each other. A group usually holds the completions of one prompt; it may hold
    those of several prompts, and groups may differ in size.

    The fields below are given by keyword. Those with a default need not be given; one of a later phase (reference, critic)
    that was not given raises an AttributeError when it is read, and `has` tells whether it is there.

    Args:
        prompts: the P prompts.
        texts: N decoded completions, special tokens written out, without the end token.
        support: tokens that top-k and top-p kept; None without them.
        parts: named parts of the reward, each (N) float32.
        fields: tensors by name, as declared below.

    Raises:
        TypeError: for a field that is not declared, or a missing one without default.
    """

    # Sampling.
    completion_ids: PerToken
    """Token ids, right-padded."""
    lengths: PerRow
    """Tokens of each row, the end token among them."""
    truncated: PerRow
    """bool, True if the row ran into its limit before an end token."""
    logprobs: PerToken
    """float32, log-probability of each sampled token under the distribution that it was drawn from."""
    entropies: PerToken
    """float32, entropy of that distribution in nats."""
    temperature: PerRow
    """float32, sampling temperature."""
    prompt: PerRow
    """Number of the prompt that each row continues; default: the same number of rows for each prompt, in order."""
    group: PerRow
    """Number of the group that each row belongs to, from 0 without gaps; default: one group for each prompt."""
    sampled: PerToken
    """bool, True at tokens that the policy sampled, False at tokens written by others (tool output) and after the end;
    default: all tokens of a row."""
    multiplicity: PerRow
    """float32, number of equal rows that a row stands for (`merge_duplicates`); default 1."""

    # Reward.
    rewards: PerRow
    """float32; default 0."""
    in_loss: PerRow
    """bool, False if the whole row is left out of the loss; default True."""
    gradient_mask: PerToken
    """bool, True at tokens that carry the policy gradient; absent if all do."""

    # Reference and learner, before the first step on the rollout.
    ref_logprobs: PerToken
    """float32, log-probabilities under the reference policy."""
    old_logprobs: PerToken
    """float32, log-probabilities under the learner itself."""

    # Advantages, and the critic's part in them.
    advantages: PerToken
    """float32; default 0."""
    values: PerToken
    """float32, return expected by the critic before each token."""
    returns: PerToken
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
        if unknown := fields.keys() - set(FIELDS):
            raise TypeError(f"Rollouts have no field {', '.join(sorted(unknown))}; known are {', '.join(FIELDS)}.")
        if missing := REQUIRED - fields.keys():
            raise TypeError(f"Rollouts need {', '.join(sorted(missing))}.")
        self.prompts, self.texts, self.support, self.parts = prompts, list(texts), support, dict(parts or {})
        for name, value in fields.items():
            if value is not None:
                setattr(self, name, value)
        for name, default in DEFAULTS.items():
            if not self.has(name):
                setattr(self, name, default(self))

    if not TYPE_CHECKING:  # a type checker would take it to allow every name

        def __getattr__(self, name: str) -> NoReturn:
            unfilled = name in FIELDS
            raise AttributeError(
                f"these rollouts have no {name}" + (": nothing has filled the field yet." if unfilled else ".")
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def has(self, field: str) -> bool:
        """Whether a field is filled."""
        return field in self.__dict__

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Filled fields by name."""
        return {name: self.__dict__[name] for name in FIELDS if name in self.__dict__}

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
        in_order = not rest and torch.equal(self.prompt, _in_order(len(self.prompts), size, self.prompt.device))
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
        lengths = (self.lengths - (~self.truncated).long()).tolist()
        return [row[:length] for row, length in zip(self.completion_ids.tolist(), lengths, strict=True)]

    # --- selecting and joining -----------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> Rollouts:
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        parts = {name: value.to(device) for name, value in self.parts.items()}
        support = self.support.to(device) if self.support else None
        return Rollouts(self.prompts.to(device), texts=self.texts, support=support, parts=parts, **moved)

    def rows_of(self, groups: Sequence[int]) -> Tensor:
        """Numbers of the rows of the given groups, one group after another: a 1-D index tensor."""
        by_group = self.group.argsort(stable=True).split(self.group.bincount().tolist())
        return torch.cat([by_group[number] for number in groups])

    def select(self, groups: Sequence[int]) -> Rollouts:
        """The given groups in the given order, cut to the longest completion among them, with the prompts that they need."""
        rows = self.rows_of(groups)
        needed = list(dict.fromkeys(self.prompt[rows].tolist()))
        picked = self._rows(rows, self.prompts.select(needed))
        place = torch.zeros(len(self.prompts), dtype=torch.long, device=rows.device)
        place[needed] = torch.arange(len(needed), device=rows.device)
        picked.prompt = place[self.prompt[rows]]
        picked.group = self.group[rows].unique_consecutive(return_inverse=True)[1]
        return picked

    @classmethod
    def join(cls, rollouts: Sequence[Rollouts]) -> Rollouts:
        """The groups of several rollouts, one rollout after another.

        Prompts are padded on the left to the widest of them, values per token on the right.

        Raises:
            ValueError: if an optional field is filled in some of them only.
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

    def merge_duplicates(self) -> Rollouts:
        """One row for rows that are equal in every field.

        Weighted by ``multiplicity``, the rows left have the same loss and gradient as all rows.
        """
        columns = []
        for name, value in self.tensors.items():
            if name != "multiplicity":
                table = value if value.dim() == 2 else value[:, None]
                columns.append(table.view(torch.int32) if table.dtype == torch.float32 else table)  # floats by their bits
        _, same, counts = torch.cat(columns, dim=1).unique(dim=0, return_inverse=True, return_counts=True)
        place = torch.arange(len(self), device=same.device)
        first = torch.full_like(counts, len(self)).scatter_reduce(0, same, place, "amin")
        rows, order = first.sort()
        merged = self._rows(rows, self.prompts)
        merged.multiplicity = torch.zeros_like(self.multiplicity[: len(counts)]).index_add(0, same, self.multiplicity)[order]
        return merged

    def _rows(self, rows: Tensor, prompts: PromptBatch) -> Rollouts:
        """The given rows, cut to the longest of them."""
        width = int(self.lengths[rows].max()) if len(rows) else 0
        picked = {name: value[rows, :width] if value.dim() == 2 else value[rows] for name, value in self.tensors.items()}
        return Rollouts(
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
    def from_state(cls, state: dict[str, Any]) -> Rollouts:
        """Rollouts from what `state_dict` gave."""
        return cls(
            PromptBatch.from_state(state["prompts"]),
            texts=state["texts"],
            support=Support(**state["support"]) if state["support"] else None,
            parts=state["parts"],
            **state["tensors"],
        )


FIELDS = tuple(Rollouts.__annotations__)
"""Names of all fields, as `Rollouts` declares them."""

DEFAULTS: dict[str, Callable[[Rollouts], Tensor]] = {
    "prompt": lambda rows: _in_order(len(rows.prompts), len(rows) // max(len(rows.prompts), 1), rows.lengths.device),
    "group": lambda rows: rows.prompt,
    "sampled": lambda rows: rows.mask,
    "multiplicity": lambda rows: torch.ones_like(rows.temperature),
    "rewards": lambda rows: torch.zeros_like(rows.temperature),
    "in_loss": lambda rows: torch.ones_like(rows.truncated),
    "advantages": lambda rows: torch.zeros_like(rows.logprobs),
}
"""Values of fields that were not given."""

REQUIRED = {"completion_ids", "lengths", "truncated", "logprobs", "entropies", "temperature"}
"""Fields that a sampler must give."""


def _join_numbers(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Numbers (n) of several rollouts as one (N); each comes with the count of things that it numbers."""
    counts = [count for _, count in parts]
    return torch.cat([numbers + sum(counts[:place]) for place, (numbers, _) in enumerate(parts)])


def _in_order(prompts: int, size: int, device: torch.device) -> Tensor:
    """Prompt numbers of ``size`` rows for each prompt, one prompt after another."""
    return torch.arange(prompts, device=device).repeat_interleave(size)
