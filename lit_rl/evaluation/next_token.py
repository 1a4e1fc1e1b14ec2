"""Next-token accuracy, plain and after reasoning, by the difficulty of positions (arXiv 2506.08007, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.evaluation.metrics import Mean, Proportion, with_interval
from lit_rl.rewards.prefix_match import PrefixMatch, agreed_tokens, rows_pieces
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.types import PromptBatch, Sample

BANDS = {"easy": 0.5, "medium": 1.0, "hard": 1.5}
"""Entropy bands: nats of a proxy model above which a position belongs to the band (arXiv 2506.08007, section 4.1). Each band
holds the next."""


class NextTokenEvaluation(Evaluation):
    """Accuracy of next-token prediction at held-out positions.

    ``accuracy`` counts greedy completions whose prediction is a prefix of the true continuation. ``ntp_accuracy`` counts
    positions whose most likely next token, without any reasoning, is the true one. ``matched_tokens`` is the mean number of
    tokens that predictions get right before they go wrong. If positions know their entropy (callback `EntropyFilter`), both
    accuracies are logged by band too: ``_easy`` above 0.5 nats, ``_medium`` above 1, ``_hard`` above 1.5.

    Args:
        max_new_tokens: longest completion in tokens.
        correct: judges predictions.
        samples: sampled completions per position for pass@k and the majority vote; 0 leaves both out.
        temperature: sampling temperature of these completions.
    """

    def __init__(
        self, max_new_tokens: int = 256, correct: PrefixMatch | None = None, samples: int = 0, temperature: float = 0.8
    ) -> None:
        super().__init__(max_new_tokens, correct or PrefixMatch(), samples, temperature)
        for name in ("accuracy", "ntp_accuracy"):
            self.proportions.update({f"{name}{band}": Proportion() for band in ("", *(f"_{band}" for band in BANDS))})
        self.matched = Mean()

    def update(self, actor: Actor, prompts: PromptBatch) -> None:
        super().update(actor, prompts)
        # The data's own prompts: bare contexts, without the template that `render` puts around them.
        hits = self._plain_hits(actor, prompts)
        self._add("ntp_accuracy", hits)
        self._add_to_bands("ntp_accuracy", hits, prompts.samples)

    def count(self, rollouts: Rollouts) -> None:
        super().count(rollouts)
        self._add_to_bands("accuracy", self.correct.hits(rollouts), rollouts.prompts.samples)
        pairs = zip(self.correct.answers(rollouts), rows_pieces(rollouts), strict=True)
        # Not `matched_tokens`, which gives nothing to a prediction that goes wrong later.
        lengths = [agreed_tokens(prediction or b"", pieces) for prediction, pieces in pairs]
        self.matched.update(torch.tensor(lengths, dtype=torch.float64))

    def _plain_hits(self, actor: Actor, prompts: PromptBatch) -> Tensor:
        """(P) bool, whether the most likely token after the bare context is the true one."""
        with torch.no_grad():
            logits, _ = actor.policy.prefill(prompts)  # (P, V)
        # (P), by token id: without reasoning the model predicts one token
        return logits.argmax(-1).cpu() == torch.tensor([sample.target[0] for sample in prompts.samples])

    def _add_to_bands(self, name: str, values: Tensor, samples: list[Sample]) -> None:
        # NaN is above no floor: a position without entropy belongs to no band.
        entropies = torch.tensor([float("nan") if each.entropy is None else each.entropy for each in samples])
        for band, floor in BANDS.items():
            self._add(f"{name}_{band}", values[entropies > floor])

    def compute(self) -> dict[str, float]:
        metrics = super().compute()
        if self.generates:
            metrics |= with_interval("matched_tokens", self.matched.compute())
        self.matched.reset()
        return metrics
