"""KL coefficient that follows the KL."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import PolicyGradient


class AdaptiveKL(Callback):
    """Raises ``kl_coef`` while the policy is further from the reference than a target, and lowers it while it is nearer.

    ``e = clip(kl / target - 1, -0.2, 0.2)`` and ``kl_coef <- kl_coef (1 + gain e)`` after each optimizer step (Ziegler et al.,
    arXiv 1909.08593, section 2.2). Without this callback the coefficient stays as the config has it.

    Args:
        target: KL to hold, in nats per token like the ``kl`` of the log.
        gain: strength of the reaction; at 0.1 the coefficient changes by at most 2 % a step.
    """

    def __init__(self, target: float = 0.1, gain: float = 0.1) -> None:
        if target <= 0 or not 0 < gain < 5:
            raise ValueError(
                f"AdaptiveKL: target is {target} and gain {gain}; write a target above 0 and a gain between 0 and 5."
            )
        self.target, self.gain = target, gain
        self._coef: float | None = None  # as it was in a checkpoint
        self._step = 0  # the last optimizer step that was counted

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, PolicyGradient) or not module.kl_coef:
            raise ValueError("AdaptiveKL needs a KL term to control; write model.kl_coef above 0, its first value.")

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        # Not in `on_fit_start`: strategies that shard restore callbacks after it.
        if self._coef is not None and isinstance(module, PolicyGradient):
            module.kl_coef = self._coef

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning calls this hook at each micro-batch; only the last one of an accumulation window takes a step.
        if trainer.global_step == self._step or not isinstance(module, PolicyGradient):
            return
        self._step = trainer.global_step
        # The logged KL is a mean over all ranks, so that every rank sets the same coefficient.
        self._coef = module.kl_coef = self.adapted(module.kl_coef, float(trainer.callback_metrics["kl"]))
        module.log("kl_coef", self._coef)

    def adapted(self, coef: float, kl: float) -> float:
        """The next coefficient after a step with this KL."""
        error = kl / self.target - 1
        return coef * (1 + self.gain * min(0.2, max(-0.2, error)))

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self._coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._coef = state["coef"]
