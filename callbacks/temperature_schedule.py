"""Sampling temperature that falls while the policy learns."""

from __future__ import annotations

import lightning.pytorch as pl

from lit_rl.algorithms import PolicyGradient
from lit_rl.sampling import Sampler
from lit_rl.types import PromptBatch

from .metered import MeteredCallback


class TemperatureSchedule(MeteredCallback):
    """Lowers ``model.sampler.temperature`` linearly, from a start step to the end of training.

    ``T(s) = T (1 - (1 - final) (s - start_step) / (trainer.max_steps - start_step))`` for a rollout that begins at optimizer
    step ``s``; until ``start_step`` it is ``T``, as configured. Each temperature of a list falls so. The log has it as
    ``sampling/temperature``, the mean of a list.

    Args:
        start_step: the optimizer step from which on the temperature falls; 0 from the beginning.
        final: factor on the configured temperature that is reached at ``trainer.max_steps``; 1 never lowers it.
    """

    def __init__(self, start_step: int = 0, final: float = 0.5) -> None:
        super().__init__()
        if start_step < 0 or not 0 < final <= 1:
            raise ValueError(
                f"TemperatureSchedule: start_step is {start_step} and final {final}; "
                "write a step of 0 or more and a factor above 0, up to 1."
            )
        self.start_step, self.final = start_step, final
        self._configured: float | list[float] = 1.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A trial run has one step.
        if trainer.max_steps <= self.start_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"TemperatureSchedule falls from step {self.start_step} to trainer.max_steps, which is {trainer.max_steps}; "
                "write trainer.max_steps above start_step."
            )
        self._configured = _sampler(module).temperature

    def on_rollout_start(self, trainer: pl.Trainer, module: pl.LightningModule, prompts: PromptBatch) -> PromptBatch:
        factor = self.factor(trainer.global_step, trainer.max_steps)
        # From the configured value, never from the current one: a refill calls this hook again at the same step.
        start = self._configured
        _sampler(module).temperature = [factor * each for each in start] if isinstance(start, list) else factor * start
        mean = sum(start) / len(start) if isinstance(start, list) else start
        self.metrics = {"sampling/temperature": factor * mean}
        return prompts

    def factor(self, step: int, max_steps: int) -> float:
        """Factor on the configured temperature: 1 until ``start_step``, ``final`` at ``max_steps``."""
        done = max(0, step - self.start_step) / (max_steps - self.start_step)
        # A function of the step alone, so that a resumed run needs no state.
        return 1.0 - (1.0 - self.final) * done

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        _sampler(module).temperature = self._configured  # another fit begins from it


def _sampler(module: pl.LightningModule) -> Sampler:
    if not isinstance(module, PolicyGradient):
        raise ValueError(
            f"TemperatureSchedule needs an algorithm that samples; {type(module).__name__} does not: "
            "write GRPO, RPT or PPO, or remove it."
        )
    return module.sampler
