"""Forward passes over real tokens only: prompts once per group, completions behind them, no padding in between.

All tokens of a micro-batch stand in one sequence. Embeddings, projections, norms and the feed-forward layers, most of the
work, see nothing else. Only attention needs to know which token belongs to which row: `attend` lays queries, keys and values
out in rows, lets each prompt attend to itself and each completion to its prompt and itself, and packs the result again.

It plugs into models that attend through transformers' attention interface and take a position for each token.
`lit_rl.policy_check` tries it on each model before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


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
        device = prompt_ids.device
        self.lengths = prompt_mask.sum(1)
        width = int(row_lengths.max()) if len(row_lengths) else 0
        row_mask = torch.arange(width, device=device) < row_lengths[:, None]
        own_positions = prompt_mask.long().cumsum(1) - 1
        row_positions = self.lengths[owner, None] + torch.arange(width, device=device)
        self.ids = torch.cat([prompt_ids[prompt_mask], row_ids[:, :width][row_mask]])[None]
        self.positions = torch.cat([own_positions[prompt_mask], row_positions[row_mask]])[None]
        # Rows of the layout are aligned on the left: padding is behind, where causal attention never looks.
        longest = int(self.lengths.max())
        prompt_grid = torch.arange(longest, device=device) < self.lengths[:, None]
        self.prompts = _numbers(prompt_grid, 0)  # (P, L) places in the sequence, 0 where there is padding
        self.rows = _numbers(row_mask, int(self.lengths.sum()))  # (N, T)
        self.owner = owner
        grid = torch.cat([prompt_grid.flatten(), row_mask.flatten()])
        self.back = grid.nonzero()[:, 0]  # (M) each token's place in the flattened prompts, then rows
        self._cells = torch.cat([self.prompts.flatten(), self.rows.flatten()])
        self._masks: dict[int, Tensor] = {}

    @property
    def last_of_prompts(self) -> Tensor:
        """(P) the place of each prompt's last token."""
        return self.lengths.cumsum(0) - 1

    def unpack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(M, H, D) of the sequence -> (P, L, H, D) of the prompts and (N, T, H, D) of the rows."""
        grid = _Unpack.apply(values, self._cells, self.back)
        prompts, rows = grid.split([self.prompts.numel(), self.rows.numel()])
        return prompts.view(*self.prompts.shape, *values.shape[1:]), rows.view(*self.rows.shape, *values.shape[1:])

    def row_mask(self, window: int) -> Tensor:
        """(N, 1, T, L + T) bool: what each token of a row attends to; ``window`` tokens at most, 0 for no limit."""
        if window not in self._masks:
            (_, longest), width, device = self.prompts.shape, self.rows.shape[1], self.rows.device
            before = self.lengths[self.owner][:, None, None]
            place = torch.arange(width, device=device)
            columns = torch.arange(longest, device=device)
            mask = pad((columns < before).expand(-1, width, -1), (0, width))
            mask[:, :, longest:] = place[:, None] >= place
            if window:
                key = torch.cat([columns.expand(len(self.owner), -1), self.lengths[self.owner, None] + place], dim=1)
                mask &= before + place[:, None] - key[:, None] < window
            self._masks[window] = mask[:, None]
        return self._masks[window]

    def prompt_mask(self, window: int) -> Tensor | None:
        """(L, L) bool with a window, None where plain causal attention does."""
        longest = self.prompts.shape[1]
        if not window or window >= longest:
            return None
        place = torch.arange(longest, device=self.prompts.device)
        distance = place[:, None] - place
        return (distance >= 0) & (distance < window)


def _numbers(grid: Tensor, start: int) -> Tensor:
    """Places of a grid's True cells in row-major order, from ``start`` on; 0 elsewhere."""
    return ((grid.flatten().long().cumsum(0) - 1 + start).view(grid.shape)).masked_fill(~grid, 0)


class _Unpack(torch.autograd.Function):
    """Tokens of a sequence (M, ...) -> cells of a grid (C, ...), some of which are padding; its gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cells: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return values.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Pack(torch.autograd.Function):
    """Cells of a grid (C, ...) -> the tokens of a sequence (M, ...)."""

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
    grids = [packed.unpack(state[0].transpose(0, 1)) for state in (query, key, value)]  # prompts and rows, heads last
    (prompt_q, row_q), (prompt_k, row_k), (prompt_v, row_v) = grids
    mask = packed.prompt_mask(window)
    out = [_rows(prompt_q, prompt_k.transpose(1, 2), prompt_v.transpose(1, 2), mask, scaling, dropout)]
    if packed.rows.numel():
        keys, values = (
            torch.cat([prompt.transpose(1, 2).index_select(0, packed.owner), row.transpose(1, 2)], dim=2)
            for prompt, row in ((prompt_k, row_k), (prompt_v, row_v))
        )
        out.append(_rows(row_q, keys, values, packed.row_mask(window), scaling, dropout))
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
