"""Entropy filter: positions of a text, or sampled tokens, whose next token a model is unsure of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lit_rl.algorithms import PolicyGradient, PolicyModule
from lit_rl.entropy.cache import entropy_key, fill_entropies, read_entropies, wait_for_entropies
from lit_rl.entropy.compute import window_entropies
from lit_rl.entropy.positions import HasEntropies, attach_entropies, describe_entropies, needed_windows
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.objectives.objective import top_entropy_mask
from lit_rl.options import check_choice
from lit_rl.randomness import seeded
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.sampling.check import check_policy
from lit_rl.text.windows import Windows

from .metered import MeteredCallback

Target = Literal["positions", "completion"]
PREVIEW_WINDOWS = 16
"""Windows whose entropies are computed before a threshold is refused."""
KEPT, THRESHOLD = "entropy_filter/kept", "entropy_filter/threshold"


class EntropyFilter(MeteredCallback):
    """Trains on the positions of a text whose next token a proxy model finds hard (RPT, arXiv 2506.08007).

    Before the run the proxy's next-token entropy, in nats, is computed once for the positions of the training set and of the
    set that is evaluated; it is kept on disk, and later runs read it. Training keeps positions above ``threshold`` or
    ``quantile``; evaluation sets stay whole and only learn their entropies. With ``target`` ``completion`` nothing is computed
    before the run: sampled tokens of high entropy carry the policy gradient, by the sampler's own entropies. Such a filter
    comes after callbacks that exchange rollouts (`DynamicSampling`). ``entropy_filter/kept`` in the log is the share kept.

    Args:
        proxy: the model that is asked, with the policy's vocabulary; none: the policy itself as it is before the run.
        top_k: entropy over that many most likely tokens, renormalised, so at most ``ln top_k``; 0 takes all.
        threshold: nats above which positions (or sampled tokens) are kept; the paper's bands begin at 0.5, 1.0 and 1.5.
        quantile: share that is left out instead, lowest entropies first: 0.8 keeps the highest fifth of positions, or of a
            rollout's sampled tokens over all ranks. Without threshold and quantile nothing is left out.
        cache_folder: folder of the entropies, four bytes for each position.
        batch_tokens: tokens of one forward pass of the proxy, which bounds its memory.
        target: ``positions`` of the training set are filtered, or sampled tokens of a ``completion``.
    """

    def __init__(
        self,
        proxy: PolicySpec | None = None,
        top_k: int = 16,
        threshold: float | None = None,
        quantile: float | None = None,
        cache_folder: str = "~/.cache/lit_rl",
        batch_tokens: int = 16_384,
        target: Target = "positions",
    ) -> None:
        super().__init__()
        self.proxy, self.top_k, self.threshold, self.quantile = proxy, top_k, threshold, quantile
        self.cache_folder, self.batch_tokens, self.target = cache_folder, batch_tokens, target
        self._check_options()

    @property
    def state_key(self) -> str:
        # A run may have several filters, and Lightning saves callbacks by their keys.
        return self._generate_state_key(target=self.target, threshold=self.threshold, quantile=self.quantile, top_k=self.top_k)

    def _check_options(self) -> None:
        check_choice("EntropyFilter.target", self.target, Target)
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("EntropyFilter: threshold and quantile are two ways to say one thing; write one of them.")
        neither = self.threshold is None and self.quantile is None
        if self.target == "completion" and (neither or self.proxy is not None):
            raise ValueError("EntropyFilter: target completion needs a threshold or a quantile, and no proxy.")
        if self.threshold is not None and self.threshold < 0:
            raise ValueError(f"EntropyFilter.threshold is {self.threshold}; write nats, 0 or more.")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"EntropyFilter.quantile is {self.quantile}; write a share above 0 and below 1.")
        if self.top_k < 0 or self.top_k == 1:
            raise ValueError(f"EntropyFilter.top_k is {self.top_k}; write at least 2, or 0 for all tokens.")
        if self.batch_tokens < 1:
            raise ValueError(f"EntropyFilter.batch_tokens is {self.batch_tokens}; write at least 1.")

    # --- positions -----------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.target == "completion":
            return
        if not isinstance(module, PolicyModule):
            raise ValueError(f"EntropyFilter needs a module of lit_rl, not {type(module).__name__}.")
        if self.proxy is not None:
            self._check_tokenizer(self.proxy, module)
        sets = {"fit": ("train_set", "val_set"), "validate": ("val_set",)}.get(stage, ("test_set",))
        for name in sets:
            # Lightning sets up the data before callbacks, so the sets exist; the policy is built after.
            positions = getattr(trainer.datamodule, name)  # type: ignore[attr-defined]
            if not hasattr(positions, "entropies"):
                raise ValueError(
                    f"EntropyFilter needs positions of texts, and data.{name} holds whole samples; write data.positions, "
                    "or target completion."
                )
            if len(positions):
                self._annotate(trainer, module, positions)
            if name == "train_set":
                self._filter(positions)  # evaluation sets stay whole

    def _check_tokenizer(self, proxy: PolicySpec, module: PolicyModule) -> None:
        own, other = module.tokenizer.get_vocab(), load_tokenizer(proxy).get_vocab()
        if own != other:
            same = sum(other.get(token) == number for token, number in own.items())
            raise ValueError(
                f"EntropyFilter.proxy: its tokenizer is another than the policy's ({same} of {len(own)} tokens are the same), "
                "and its entropies would belong to other positions; give a proxy of the policy's family, or none."
            )

    def _annotate(self, trainer: pl.Trainer, module: PolicyModule, positions: HasEntropies) -> None:
        """Attach entropies to the positions, computed for all targets of the windows that hold one."""
        numbers = needed_windows(positions)
        self._refuse_threshold(trainer, module, positions.windows.select(numbers[:: max(1, len(numbers) // PREVIEW_WINDOWS)]))
        attach_entropies(positions, numbers, self._entropies(trainer, module, positions.windows.select(numbers)))

    def _entropies(self, trainer: pl.Trainer, module: PolicyModule, windows: Windows) -> NDArray[np.float32]:
        """Entropies of all targets, in order; written by the first process and read by all."""
        spec = self.proxy or module.policy_spec
        key = entropy_key(windows, spec, module.seed, module.tokenizer, self.top_k)
        file = Path(self.cache_folder).expanduser() / f"entropies-{key}.npy"
        # One process writes: several would map one file and compute the same values.
        if trainer.is_global_zero:
            fill_entropies(file, windows, lambda: self._model(trainer, module), self.top_k, self.batch_tokens)
        else:
            # Not in the barrier, which gives up after the process group's timeout of some minutes.
            wait_for_entropies(file)
        trainer.strategy.barrier()
        return read_entropies(file)

    def _model(self, trainer: pl.Trainer, module: PolicyModule) -> Policy:
        """The proxy, or the policy as `PolicyModule.configure_model` will build it."""
        # The module's seed, so that a policy from scratch gets the weights that it will train with.
        with seeded(module.seed):
            policy = Policy(self.proxy or module.policy_spec, module.tokenizer)
        check_policy(policy)
        return policy.to(trainer.strategy.root_device)

    def _refuse_threshold(self, trainer: pl.Trainer, module: PolicyModule, windows: Windows) -> None:
        """Refuse a threshold that no entropy can pass, after a few windows and not after hours."""
        # The entropy of k tokens is at most ln k, that of equal probabilities.
        if self.threshold is None or not self.top_k or self.threshold <= math.log(self.top_k):
            return
        model = self._model(trainer, module)
        some = np.concatenate([values for _, values in window_entropies(model, windows, self.top_k, self.batch_tokens)])
        raise ValueError(
            f"EntropyFilter.threshold {self.threshold} is above ln {self.top_k} = {math.log(self.top_k):.3f} nats, the most "
            f"that {self.top_k} tokens can have; write less, or top_k 0. {describe_entropies(some)}"
        )

    def _filter(self, positions: HasEntropies) -> None:
        """Leave the positions above the threshold."""
        before = len(positions)
        if not before:
            raise ValueError("EntropyFilter: the training set has no positions; give more text.")
        entropies = np.asarray(positions.entropies)
        values = entropies[positions.places]  # (positions) nats
        shown = describe_entropies(values)
        floor = self._floor(values)
        if floor > -math.inf:
            self.metrics = {KEPT: float((values > floor).mean()), THRESHOLD: floor}
            if not self.metrics[KEPT]:
                raise ValueError(f"EntropyFilter leaves no position above {floor:.3f} nats; write less. {shown}")
            # One value for each target, as `keep` reads it; NaN, at targets that were not computed, is above no floor.
            positions.keep(entropies > floor)
        rank_zero_info(f"EntropyFilter: entropy_filter/kept {len(positions):,} of {before:,} positions. {shown}")

    def _floor(self, values: NDArray[np.floating]) -> float:
        """Nats that entropies of kept positions lie above; minus infinity if nothing is left out."""
        if self.quantile is None:
            return -math.inf if self.threshold is None else self.threshold
        return float(np.quantile(values, self.quantile))

    # --- sampled tokens ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.target == "positions":
            return
        if not isinstance(module, PolicyGradient):
            raise ValueError(f"EntropyFilter.target completion needs an algorithm that samples, not {type(module).__name__}.")
        if module.objective.top_entropy < 1:
            raise ValueError(
                f"EntropyFilter.target completion and objective.top_entropy {module.objective.top_entropy} both choose tokens; "
                "leave one of them out."
            )
        most = math.log(module.policy.vocabulary)
        if self.threshold is not None and self.threshold > most:
            raise ValueError(f"EntropyFilter.threshold {self.threshold} is above ln V = {most:.3f} nats, the most there is.")

    def on_rollout_end(self, trainer: pl.Trainer, module: pl.LightningModule, rollouts: Rollouts) -> Rollouts:
        """Let only tokens of high entropy carry the policy gradient."""
        if self.target == "positions":
            return rollouts
        runtime, mask, entropies = Runtime(trainer), rollouts.loss_mask, rollouts.entropies
        everyone = runtime.gather(entropies[mask])  # of all ranks, which share one quantile
        if self.threshold is not None:
            rollouts.gradient_mask, floor = mask & (entropies > self.threshold), self.threshold
        elif self.quantile is not None:
            rollouts.gradient_mask = top_entropy_mask(entropies, mask, everyone, 1 - self.quantile)
            # For the log alone. In numpy, since `torch.quantile` refuses more than 16 million values.
            floor = float(np.quantile(everyone.cpu().numpy(), self.quantile)) if len(everyone) else 0.0
        # On every rank, even one without a token in the loss: this is a collective.
        kept, counted = runtime.sum(torch.stack([rollouts.gradient_mask.sum(), mask.sum()])).tolist()
        self.metrics = {KEPT: kept / max(counted, 1), THRESHOLD: floor}
        return rollouts

    # --- resuming ------------------------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; a training set that was filtered otherwise would be entered at another place."""
        kept, before = (metrics.get(KEPT, 1.0) for metrics in (self.metrics, state["metrics"]))
        if self.target == "positions" and kept != before:
            raise ValueError(
                f"EntropyFilter keeps {kept:.4%} of the positions, and the run that is resumed kept {before:.4%}; resume with "
                "the same data and options."
            )
        super().load_state_dict(state)
