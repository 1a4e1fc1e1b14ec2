"""A critic: for each token of a completion one number, what the completion is expected to earn from there on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from lit_rl.rollouts import Rollouts

FILE = "value_head.safetensors"
"""Where an exported folder holds the head."""


class ValueHead(nn.Linear):
    """(..., H) hidden states -> (...) values.

    Zero before it has learned, so that the first advantages are what was really earned. It stays in the precision that it was
    made in, whatever the run's is: in half precision the steps of a small rate would be rounded away.

    Args:
        hidden: H.
        dtype: of its weights.
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
            # A sum over one number: FSDP2 does not like to be handed a view.
            return super().forward(hidden.to(self.weight.dtype)).sum(-1)


def load_value_head(head: ValueHead, folder: str | None) -> None:
    """Take the weights that an exported folder holds; without such a folder, or a head in it, they stay as they are."""
    file = Path(folder or "") / FILE
    if folder and file.is_file():
        head.load_state_dict(load_file(file))


def save_value_head(weights: dict[str, Tensor], folder: Path) -> None:
    """Put the head's weights into an exported folder."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / FILE)


def with_bootstrap_position(rollouts: Rollouts) -> Rollouts:
    """The rollouts with a place behind each truncated row's last token, where its value is asked for to bootstrap from.

    What stands in that place does not matter: a value is that of the tokens before it.
    """
    lengths = rollouts.lengths + rollouts.truncated
    place = torch.arange(rollouts.completion_ids.shape[1] + 1, device=lengths.device)
    added = (place == rollouts.lengths[:, None]) & rollouts.truncated[:, None]
    return Rollouts(
        rollouts.prompts,
        prompt=rollouts.prompt,
        group=rollouts.group,
        sampled=pad(rollouts.sampled, (0, 1)) | added,
        completion_ids=pad(rollouts.completion_ids, (0, 1)),
        lengths=lengths,
        truncated=rollouts.truncated,
        logprobs=pad(rollouts.logprobs, (0, 1)),
        entropies=pad(rollouts.entropies, (0, 1)),
        temperature=rollouts.temperature,
    )


def critic_metrics(values: Tensor, returns: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """``values_mean``, ``returns_mean`` and ``explained_variance`` of a rollout, over the tokens that count on all ranks.

    The last is ``1 - Var(R - V) / Var(R)``: 1 for a perfect critic, 0 for a constant one, and where all returns are equal:
    there is nothing to explain.

    Args:
        values: (N, T) of this rank.
        returns: (N, T), what the critic is to expect: at lambda below 1 its own values are part of them.
        mask: (N, T) bool.
        total: sums a tensor over all ranks.
    """
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
