"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's trainable weights, at least in float32.

    Not an ``nn.Module``, so that parameters and exports do not hold the averages.

    Args:
        decay: share of the average that an update keeps; 1 keeps the weights of the first update, 0 follows the model.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self.step = -1

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights, unless that was done at this optimizer step.

        Args:
            model: the model.
            step: optimizer steps taken; a rollout that is filled up by several draws asks several times at one step.
        """
        if step == self.step:
            return
        for name, weight in _trainable(model):
            # In half precision a step of 1 - decay would round away.
            new = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            old = self.weights.get(name)
            # `to` returns the weight itself if it is float32 already: without `clone` the average would change with the model.
            # An average that a checkpoint brought may be on another device.
            self.weights[name] = new.clone() if old is None else old.to(new).lerp(new, 1 - self.decay)
        self.step = step

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Run the model with averages for weights; its own tensors come back afterwards, also after an exception."""
        # `data` is exchanged, not the Parameter: the optimizer and tied layers hold the Parameter itself.
        own = {name: weight.data for name, weight in _trainable(model)}
        try:
            for name, weight in _trainable(model):
                weight.data = self.weights[name].to(weight)
            yield
        finally:
            for name, weight in _trainable(model):
                weight.data = own[name]


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
