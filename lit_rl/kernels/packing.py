"""Forward passes over real tokens only: prompts once per group, completions behind them, no padding in between.

All tokens of a micro-batch stand in one sequence. Embeddings, projections, norms and the feed-forward layers, most of the
work, see nothing else. Only attention needs to know which token belongs to which row: `attend` lays queries, keys and values
out in rows, lets each prompt attend to itself and each completion to its prompt and itself, and packs the result again.

It plugs into models that attend through transformers' attention interface and take a position for each token.
`lit_rl.sampling.check` tries it on each model before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

WORTH = 0.2
"""Share of attention's work that must be saved before short and long sequences are laid out apart."""


class RowLayout:
    """Some of the sequences beside each other, padded behind to their longest.

    Args:
        numbers: (n) which sequences.
        starts: (N) the place of each sequence's first token.
        lengths: (N) tokens of each sequence.
        before: (N) tokens of its prompt; None for sequences that continue none.
        longest: tokens of the longest prompt of all.
        owner: (N) which prompt each continues.
    """

    def __init__(
        self,
        numbers: Tensor,
        starts: Tensor,
        lengths: Tensor,
        before: Tensor | None = None,
        longest: int = 0,
        owner: Tensor | None = None,
    ) -> None:
        place = torch.arange(int(lengths[numbers].max()) if len(numbers) else 0, device=lengths.device)
        self.filled = place < lengths[numbers, None]  # (n, T) bool
        self.cells = (starts[numbers, None] + place).masked_fill(~self.filled, 0)  # (n, T) places in the packed sequence
        self.before = None if before is None else before[numbers]
        self.owner = None if owner is None else owner[numbers]
        self.longest = longest
        # Made here for all layers: what a compiled layer finds made or missing, it would be compiled for twice.
        self._masks = {0: None if before is None else self._row_mask(0)}

    def mask(self, window: int) -> Tensor | None:
        """What each token attends to, ``window`` tokens at most, 0 for no limit: (n, 1, T, L + T) bool for rows behind prompts,
        (T, T) for prompts, None where plain causal attention does."""
        if window not in self._masks:
            self._masks[window] = self._prompt_mask(window) if self.before is None else self._row_mask(window)
        return self._masks[window]

    def _prompt_mask(self, window: int) -> Tensor | None:
        width = self.cells.shape[1]
        if window >= width:
            return None
        place = torch.arange(width, device=self.cells.device)
        distance = place[:, None] - place
        return (distance >= 0) & (distance < window)

    def _row_mask(self, window: int) -> Tensor:
        assert self.before is not None
        width, device = self.cells.shape[1], self.cells.device
        before = self.before[:, None, None]
        place, columns = torch.arange(width, device=device), torch.arange(self.longest, device=device)
        mask = pad((columns < before).expand(-1, width, -1), (0, width))
        mask[:, :, self.longest :] = place[:, None] >= place
        if window:
            key = torch.cat([columns.expand(len(before), -1), self.before[:, None] + place], dim=1)
            mask &= before + place[:, None] - key[:, None] < window
        return mask[:, None]


class Packed:
    """Tokens of P prompts, each once, then those of N rows that continue them; rows may be none.

    Args:
        prompt_ids: (P, L) token ids.
        prompt_mask: (P, L) bool, True at the tokens that count.
        row_ids: (N, T) token ids, right-padded.
        row_lengths: (N) tokens of each row, 0 and more.
        owner: (N) which prompt each row continues.
    """

    def __init__(self, prompt_ids: Tensor, prompt_mask: Tensor, row_ids: Tensor, row_lengths: Tensor, owner: Tensor) -> None:
        lengths, device = prompt_mask.sum(1), prompt_mask.device
        longest, count = int(lengths.max()), int(lengths.sum())
        starts, row_starts = lengths.cumsum(0) - lengths, row_lengths.cumsum(0) - row_lengths + count
        every_prompt = RowLayout(torch.arange(len(lengths), device=device), starts, lengths)
        every_row = RowLayout(torch.arange(len(owner), device=device), row_starts, row_lengths)
        self.prompts, self.rows = every_prompt.cells, every_row.cells  # (P, L) and (N, T) places, 0 where there is padding
        self.last_of_prompts = lengths.cumsum(0) - 1  # (P) places

        own_positions = prompt_mask.long().cumsum(1) - 1
        row_positions = lengths[owner, None] + torch.arange(self.rows.shape[1], device=device)
        row_ids = row_ids[:, : self.rows.shape[1]]
        self.ids = torch.cat([prompt_ids[prompt_mask], row_ids[every_row.filled]])[None]
        self.positions = torch.cat([own_positions[prompt_mask], row_positions[every_row.filled]])[None]

        # Rows find the keys of their prompts in the first grid; where there are none, prompts may be apart too.
        alone = not self.rows.numel()
        self.layouts = [RowLayout(part, starts, lengths) for part in _parts(lengths, 0)] if alone else [every_prompt]
        if not alone:
            before = lengths[owner]
            self.layouts += [
                RowLayout(part, row_starts, row_lengths, before, longest, owner) for part in _parts(row_lengths, longest)
            ]
        self._cells = torch.cat([layout.cells.flatten() for layout in self.layouts])
        filled = torch.cat([layout.filled.flatten() for layout in self.layouts]).nonzero()[:, 0]
        self.back = torch.empty_like(filled).index_copy(0, self._cells[filled], filled)  # (M) each token's place in the layouts

    def unpack(self, values: Tensor) -> list[Tensor]:
        """(M, H, D) of the sequence -> (n, T, H, D) of each layout."""
        flat = _Unpack.apply(values, self._cells, self.back)
        parts = flat.split([layout.cells.numel() for layout in self.layouts])
        return [part.view(*layout.cells.shape, *values.shape[1:]) for layout, part in zip(self.layouts, parts, strict=True)]


def _parts(lengths: Tensor, before: int) -> list[Tensor]:
    """Numbers of the sequences that are laid out together: all that have tokens, or the shorter and the longer ones apart.

    Attention works through ``T (before + T)`` pairs for each sequence, T being the longest beside it.
    """
    lengths, order = lengths.sort(stable=True)
    empty = int((lengths == 0).sum())
    lengths, order = lengths[empty:], order[empty:]
    count, pairs = torch.arange(1, len(order) + 1, device=order.device), lengths * (before + lengths)
    apart = count * pairs + (len(order) - count) * pairs[-1]
    least, cut = apart.min(0)
    together = len(order) * pairs[-1]
    return [order] if least > (1 - WORTH) * together else [order[: int(cut) + 1], order[int(cut) + 1 :]]


class _Unpack(torch.autograd.Function):
    """Tokens of a sequence (M, ...) -> cells of a layout (C, ...), some of which are padding; its gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cells: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return values.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Pack(torch.autograd.Function):
    """Cells of a layout (C, ...) -> the tokens of a sequence (M, ...)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.num_cells = len(values)
        return values.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        cells = grad.new_zeros(ctx.num_cells, *grad.shape[1:])
        return cells.index_copy(0, ctx.saved_tensors[0], grad), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float, window: int, dropout: float = 0.0
) -> Tensor:
    """Attention of a packed sequence: (1, Hq, M, D) queries, (1, Hkv, M, D) keys and values -> (1, M, Hq, D)."""
    queries, keys, values = (packed.unpack(state[0].transpose(0, 1)) for state in (query, key, value))
    prompt_key, prompt_value = keys[0].transpose(1, 2), values[0].transpose(1, 2)  # of the first layout, (P, Hkv, L, D)
    out = []
    for layout, own_query, own_key, own_value in zip(packed.layouts, queries, keys, values, strict=True):
        row_key, row_value = own_key.transpose(1, 2), own_value.transpose(1, 2)
        if layout.owner is not None:
            row_key = torch.cat([prompt_key.index_select(0, layout.owner), row_key], dim=2)
            row_value = torch.cat([prompt_value.index_select(0, layout.owner), row_value], dim=2)
        out.append(_rows(own_query, row_key, row_value, layout.mask(window), scaling, dropout))
    return _Pack.apply(torch.cat(out), packed.back)[None]


def _rows(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, dropout: float) -> Tensor:
    """(n, q, Hq, D) queries on (n, Hkv, k, D) keys and values -> (n * q, Hq, D)."""
    repeats = query.shape[2] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    out = scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )
    return out.transpose(1, 2).flatten(0, 1)


def packed_options(packed: Packed) -> dict[str, Any]:
    """What a transformers decoder is called with to run a packed sequence."""
    # Of four dimensions, so that transformers takes it for a finished mask and makes none of its own.
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)
    return {"input_ids": packed.ids, "position_ids": packed.positions, "attention_mask": no_mask, "packed": packed}
