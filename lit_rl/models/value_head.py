"""Value head: for each token of a completion one number, the return expected from there on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from lit_rl.rollouts import Rollouts

FILE_NAME = "value_head.safetensors"
"""File in an exported folder that holds the head."""


class ValueHead(nn.Linear):
    """(..., H) hidden states -> (...) values.

    A new head is zero, so that the first advantages are returns that were really earned. Its weights keep their precision,
    whatever the precision of the run: half precision would round the steps of a small learning rate away.

    Args:
        hidden: H.
        dtype: precision of its weights.
    """

    def __init__(self, hidden: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(hidden, 1, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ValueHead:
        """Move, but do not cast."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            # A sum over one number drops the last dimension without a view: FSDP2 does not take views as outputs well.
            return super().forward(hidden.to(self.weight.dtype)).sum(-1)


def load_value_head(head: ValueHead, folder: str | None) -> None:
    """Load the weights that an exported folder holds; without a folder, or a head in it, the head stays as it is."""
    file = Path(folder or "") / FILE_NAME
    if folder and file.is_file():
        head.load_state_dict(load_file(file))


def save_value_head(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the head's weights into an exported folder."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / FILE_NAME)


def with_bootstrap_position(rollouts: Rollouts) -> Rollouts:
    """Rollouts with one more token in each truncated row, whose value is the row's bootstrap value; cut to the longest row.

    Any token id does there, since a value depends on the tokens before it only. Nothing but values may be computed of it.
    """
    lengths = rollouts.lengths + rollouts.truncated  # (N)
    # Forward passes cut rows to the longest, so fields must have no column that no row fills.
    width = int(lengths.max())
    place = torch.arange(width, device=lengths.device)
    added = (place == rollouts.lengths[:, None]) & rollouts.truncated[:, None]  # (N, width)

    def resized(values: Tensor) -> Tensor:
        return pad(values, (0, width - values.shape[1]))

    return Rollouts(
        rollouts.prompts,
        prompt=rollouts.prompt,
        group=rollouts.group,
        sampled=resized(rollouts.sampled) | added,
        completion_ids=resized(rollouts.completion_ids),
        lengths=lengths,
        truncated=rollouts.truncated,
        logprobs=resized(rollouts.logprobs),
        entropies=resized(rollouts.entropies),
        temperature=rollouts.temperature,
    )


def critic_metrics(values: Tensor, returns: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Metrics ``values_mean``, ``returns_mean`` and ``explained_variance``, over the tokens that count on all ranks.

    Explained variance is ``1 - Var(R - V) / Var(R)``: 1 for a perfect critic, 0 for a constant one. It is 0 too if all
    returns are equal.

    Args:
        values: (N, T), values of this rank.
        returns: (N, T), targets of the critic; at lambda below 1 its own values are part of them.
        mask: (N, T) bool.
        total: sums a tensor over all ranks.
    """
    # Variances below are differences of large sums, which cancel in float32.
    truth = returns.double() * mask
    rest = truth - values.double() * mask
    sums = [rest.sum(), rest.square().sum(), truth.sum(), truth.square().sum(), mask.sum().double()]
    *sums, count = total(torch.stack(sums)).tolist()
    gap, gaps, mean, squares = (each / max(count, 1.0) for each in sums)
    variance = squares - mean**2
    return {
        "values_mean": mean - gap,
        "returns_mean": mean,
        "explained_variance": 1.0 - (gaps - gap**2) / variance if variance > 1e-12 else 0.0,
    }
