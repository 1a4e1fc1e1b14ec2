"""Auxiliary loss of a mixture of experts, which keeps its router from sending all tokens to a few experts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lit_rl.models.spec import PolicySpec


class RouterLoss:
    """Load-balancing loss over the tokens of all forward passes with gradient since it was last taken.

    ``E sum_e f_e P_e`` of E experts: f_e is the share of tokens that a layer sends to expert e, P_e the mean probability of e,
    both over the tokens of all layers (Switch Transformers, arXiv 2101.03961, equations 4 to 6, as transformers computes it).
    It is part of the loss if the model's config has ``output_router_logits: true``, with the config's ``router_aux_loss_coef``.

    Args:
        model: the model.
        spec: names the model.

    Raises:
        ValueError: if the config asks for a loss that cannot be computed.
    """

    def __init__(self, model: PreTrainedModel, spec: PolicySpec) -> None:
        config = model.config
        coef = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
        asked = bool(getattr(config, "output_router_logits", False))
        self.coef = coef if asked else 0.0
        if coef and not asked:
            rank_zero_info(
                f"router_aux_loss_coef {coef} of this {config.model_type} is not used: its output_router_logits is false."
            )
        if self.coef and (spec.compile or not hasattr(model, "num_experts_per_tok")):
            reason = "policy.compile" if spec.compile else f"model type {config.model_type}"
            raise ValueError(f"the auxiliary loss of the router does not go with {reason}; write output_router_logits: false.")
        self._experts, self._chosen = getattr(model, "num_experts", 0), getattr(model, "num_experts_per_tok", 0)
        self._passes: list[list[Tensor]] = []  # for each forward pass, for each layer (tokens, E)

    def collect(self, out: Any, mask: Tensor | None = None) -> None:
        """Keep the router's logits of a forward pass.

        Args:
            out: output of the model's decoder.
            mask: (n, S) bool, True at real tokens; None if all are.
        """
        if self.coef and torch.is_grad_enabled():
            self._passes.append([layer if mask is None else layer[mask.flatten()] for layer in out.router_logits])

    def clear(self) -> None:
        """Forget the passes so far."""
        self._passes = []

    def take(self) -> Tensor | None:
        """The loss, 0-D with gradient, without its coefficient; None without forward passes."""
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        passes = self._passes
        if not passes:
            return None
        self.clear()
        return load_balancing_loss_func(tuple(map(torch.cat, zip(*passes, strict=True))), self._experts, self._chosen)
