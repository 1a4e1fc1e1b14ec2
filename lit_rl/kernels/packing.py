"""Varlen packing: forward passes over real tokens only, each prompt once per group, its completions after it.

All tokens of a micro-batch stand in one sequence. Embeddings, projections, norms and feed-forward layers, most of the work,
run on this sequence. Only attention needs to know which token belongs to which row: `attend` lays queries, keys and values
out in padded rows, lets each prompt attend to itself and each completion to its prompt and itself, and packs the result.

A *place* is an index into the packed sequence, a *slot* an index into the padded layouts, one layout after another:

    places  0 1 2 3 4 5                      prompts 0 1 | 2, rows 3 4 | 5
    layouts [[0 1], [2 _]] [[5]] [[3 4]]     slots 0 to 6; slot 3 is padding

Packing works for models that attend through transformers' attention interface and take a position for each token.
`lit_rl.sampling.check` tries it on each model before use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lit_rl.kernels.softcap import capped_attention

MIN_SAVING = 0.2
"""Share of attention's work that a second layout must save: short and long sequences are laid out apart from here on."""


class Prefixes(NamedTuple):
    """Prompts that sequences continue."""

    owner: Tensor
    """(N) number of each sequence's prompt."""
    lengths: Tensor
    """(N) tokens of each sequence's prompt."""
    longest: int
    """L, tokens of the longest prompt of all."""


class RowLayout:
    """Some sequences as rows of slots, padded on the right to the longest of them.

    Args:
        numbers: (n) numbers of the sequences.
        starts: (N) place of each sequence's first token.
        lengths: (N) tokens of each sequence.
        prefixes: prompts of the N sequences; None for sequences that continue none.
    """

    def __init__(self, numbers: Tensor, starts: Tensor, lengths: Tensor, prefixes: Prefixes | None = None) -> None:
        column = torch.arange(int(lengths[numbers].max()) if len(numbers) else 0, device=lengths.device)
        self.filled = column < lengths[numbers, None]  # (n, T) bool, slots that hold a token
        # Padding reads place 0; nothing reads what attention makes of it.
        self.places = (starts[numbers, None] + column).masked_fill(~self.filled, 0)  # (n, T)
        self.owner = None if prefixes is None else prefixes.owner[numbers]  # (n)
        self.before = None if prefixes is None else prefixes.lengths[numbers]  # (n)
        self.longest = 0 if prefixes is None else prefixes.longest
        # Computed here for all layers: a compiled layer that computes the mask itself is compiled twice, with and without it.
        self._masks = {0: None if self.before is None else self._row_mask(self.before, 0)}

    def mask(self, window: int) -> Tensor | None:
        """Mask of attention, True where a token attends.

        Args:
            window: tokens that a token attends to at most, itself included; 0 for no limit.

        Returns:
            (n, 1, T, L + T) for sequences after prompts, (T, T) for other sequences, None for plain causal attention.
        """
        if window not in self._masks:
            self._masks[window] = self._prompt_mask(window) if self.before is None else self._row_mask(self.before, window)
        return self._masks[window]

    def _prompt_mask(self, window: int) -> Tensor | None:
        width = self.places.shape[1]
        # Plain causal attention: padding is on the right, so no token attends to it.
        if window >= width:
            return None
        column = torch.arange(width, device=self.places.device)
        distance = column[:, None] - column  # (T, T)
        return (distance >= 0) & (distance < window)

    def _row_mask(self, before: Tensor, window: int) -> Tensor:
        width, device = self.places.shape[1], self.places.device
        before = before[:, None, None]  # (n, 1, 1)
        column, prompt_column = torch.arange(width, device=device), torch.arange(self.longest, device=device)
        mask = pad((prompt_column < before).expand(-1, width, -1), (0, width))  # (n, T, L + T)
        mask[:, :, self.longest :] = column[:, None] >= column
        if window:
            # Positions in the row: a row's own columns continue its prompt, however much padding stands between.
            key = torch.cat([prompt_column.expand(len(before), -1), before[:, 0] + column], dim=1)  # (n, L + T)
            mask &= before + column[:, None] - key[:, None] < window
        return mask[:, None]


class Packed:
    """Packed sequence of M tokens: P prompts, each once, then N rows that continue them.

    Args:
        prompt_ids: (P, L) token ids.
        prompt_mask: (P, L) bool, True at the tokens that count.
        row_ids: (N, T) token ids, right-padded; N may be 0.
        row_lengths: (N) tokens of each row; may be 0.
        owner: (N) number of the prompt that each row continues.
    """

    def __init__(self, prompt_ids: Tensor, prompt_mask: Tensor, row_ids: Tensor, row_lengths: Tensor, owner: Tensor) -> None:
        lengths, device = prompt_mask.sum(1), prompt_mask.device
        longest, count = int(lengths.max()), int(lengths.sum())
        starts, row_starts = lengths.cumsum(0) - lengths, row_lengths.cumsum(0) - row_lengths + count
        all_prompts = RowLayout(torch.arange(len(lengths), device=device), starts, lengths)
        all_rows = RowLayout(torch.arange(len(owner), device=device), row_starts, row_lengths)
        self.prompt_places, self.row_places = all_prompts.places, all_rows.places  # (P, L) and (N, T), 0 at padding
        self.last_of_prompts = lengths.cumsum(0) - 1  # (P) places

        width = all_rows.places.shape[1]  # T without columns of padding
        prompt_positions = prompt_mask.long().cumsum(1) - 1  # (P, L), also for prompts that are padded on the left
        row_positions = lengths[owner, None] + torch.arange(width, device=device)  # (N, T)
        self.ids = torch.cat([prompt_ids[prompt_mask], row_ids[:, :width][all_rows.filled]])[None]  # (1, M)
        self.positions = torch.cat([prompt_positions[prompt_mask], row_positions[all_rows.filled]])[None]  # (1, M)

        if self.row_places.numel():
            # Rows find the keys of all prompts in the first layout, so prompts are not split.
            prefixes = Prefixes(owner, lengths[owner], longest)
            parts = _split_by_length(row_lengths, longest)
            self.layouts = [all_prompts, *(RowLayout(part, row_starts, row_lengths, prefixes) for part in parts)]
        else:
            self.layouts = [RowLayout(part, starts, lengths) for part in _split_by_length(lengths, 0)]
        self._places = torch.cat([layout.places.flatten() for layout in self.layouts])  # (C), place of each slot
        filled = torch.cat([layout.filled.flatten() for layout in self.layouts]).nonzero()[:, 0]
        self.slots = torch.empty_like(filled).index_copy(0, self._places[filled], filled)  # (M), slot of each token

    def unpack(self, values: Tensor) -> list[Tensor]:
        """(M, H, D) of the sequence -> (n, T, H, D) of each layout."""
        flat = _unpack(values, self._places, self.slots)
        parts = torch.split(flat, [layout.places.numel() for layout in self.layouts])
        return [part.view(*layout.places.shape, *values.shape[1:]) for layout, part in zip(self.layouts, parts, strict=True)]


def _split_by_length(lengths: Tensor, before: int) -> list[Tensor]:
    """Numbers of the sequences of each layout: one layout for all that have tokens, or one for short and one for long ones.

    Attention works through ``T (before + T)`` pairs of tokens for each sequence, T being the longest in its layout.
    """
    lengths, order = lengths.sort(stable=True)
    empty = int((lengths == 0).sum())
    lengths, order = lengths[empty:], order[empty:]
    count, pairs = torch.arange(1, len(order) + 1, device=order.device), lengths * (before + lengths)
    apart = count * pairs + (len(order) - count) * pairs[-1]  # work if the first `count` have a layout of their own
    least, cut = apart.min(0)
    together = len(order) * pairs[-1]
    return [order] if least > (1 - MIN_SAVING) * together else [order[: int(cut) + 1], order[int(cut) + 1 :]]


# Autograd would add gradients at their indices; every token has exactly one slot, so copies are enough and take less time.
class _Unpack(torch.autograd.Function):
    """Tokens (M, ...) -> slots (C, ...), some of which are padding, whose gradient is dropped."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Pack(torch.autograd.Function):
    """Slots (C, ...) -> tokens (M, ...); the gradient of padding is 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.num_slots = len(values)
        return values.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        zeros = grad.new_zeros(ctx.num_slots, *grad.shape[1:])
        return zeros.index_copy(0, ctx.saved_tensors[0], grad), None


_unpack: Callable[[Tensor, Tensor, Tensor], Tensor] = _Unpack.apply
_pack: Callable[[Tensor, Tensor], Tensor] = _Pack.apply


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    scaling: float,
    window: int,
    dropout: float = 0.0,
    cap: float = 0.0,
) -> Tensor:
    """Attention of a packed sequence.

    Args:
        query: (1, Hq, M, D).
        key: (1, Hkv, M, D).
        value: (1, Hkv, M, D).
        packed: the sequence.
        scaling: factor on queries times keys.
        window: tokens that a token attends to at most, itself included; 0 for no limit.
        dropout: probability of dropping a weight.
        cap: soft limit of the scores; 0 for none.

    Returns:
        (1, M, Hq, D).
    """
    queries, keys, values = (packed.unpack(state[0].transpose(0, 1)) for state in (query, key, value))
    prompt_key, prompt_value = keys[0].transpose(1, 2), values[0].transpose(1, 2)  # (P, Hkv, L, D), the first layout's
    out = []
    for layout, own_query, own_key, own_value in zip(packed.layouts, queries, keys, values, strict=True):
        row_key, row_value = own_key.transpose(1, 2), own_value.transpose(1, 2)  # (n, Hkv, T, D)
        if layout.owner is not None:
            row_key = torch.cat([prompt_key.index_select(0, layout.owner), row_key], dim=2)  # (n, Hkv, L + T, D)
            row_value = torch.cat([prompt_value.index_select(0, layout.owner), row_value], dim=2)
        out.append(_attend_rows(own_query, row_key, row_value, layout.mask(window), scaling, dropout, cap))
    return _pack(torch.cat(out), packed.slots)[None]


def _attend_rows(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, dropout: float, cap: float
) -> Tensor:
    """(n, q, Hq, D) queries on (n, Hkv, k, D) keys and values -> (n * q, Hq, D)."""
    if cap:
        capped = capped_attention(query.transpose(1, 2), keys, values, mask, scaling, cap, dropout)
        return capped.transpose(1, 2).flatten(0, 1)
    repeats = query.shape[2] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    out = scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )
    return out.transpose(1, 2).flatten(0, 1)


def packed_options(packed: Packed) -> dict[str, Any]:
    """Arguments of a transformers decoder that runs a packed sequence."""
    # A mask of four dimensions counts as finished, so that transformers makes none of its own.
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)
    return {"input_ids": packed.ids, "position_ids": packed.positions, "attention_mask": no_mask, "packed": packed}
