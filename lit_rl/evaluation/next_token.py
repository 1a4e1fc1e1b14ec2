"""How well a policy predicts the next token, plainly and after reasoning, by how hard the position is: Table 1 of RPT."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.evaluation.metrics import Mean, Proportion
from lit_rl.rewards.prefix_match import PrefixMatch, agreed_tokens, rows_pieces
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.types import PromptBatch, Sample

BANDS = {"easy": 0.5, "medium": 1.0, "hard": 1.5}
"""Nats of a proxy model's entropy that positions of a band lie above (arXiv 2506.08007, section 4.1): each holds the next."""


class NextTokenEvaluation(Evaluation):
    """Accuracy of the next-token prediction at held-out positions.

    ``accuracy`` counts greedy completions whose prediction is a prefix of what follows, ``ntp_accuracy`` positions where the
    model's most likely next token, without any reasoning, is the true one; ``matched_tokens`` is how many tokens the
    predictions get right on average before they go wrong. Where the positions know their entropy (callback `EntropyFilter`),
    each stands by band too: ``_easy`` above 0.5 nats, ``_medium`` above 1, ``_hard`` above 1.5.

    Args:
        max_new_tokens: longest completion in tokens.
        correct: what a right prediction is.
        samples: sampled completions per position for pass@k and the majority vote; 0 leaves both out.
        temperature: of those samples.
    """

    def __init__(
        self, max_new_tokens: int = 256, correct: PrefixMatch | None = None, samples: int = 0, temperature: float = 0.8
    ) -> None:
        judge = correct or PrefixMatch()
        super().__init__(max_new_tokens, judge, samples, temperature)
        self.prefix = judge
        for name in ("accuracy", "ntp_accuracy"):
            self.proportions.update({f"{name}{band}": Proportion() for band in ("", *(f"_{band}" for band in BANDS))})
        self.matched = Mean()

    def update(self, actor: Actor, prompts: PromptBatch) -> None:
        super().update(actor, prompts)
        self._add_by_band("ntp_accuracy", self._plain_hits(actor, prompts), prompts.samples)

    def _count(self, rollouts: Rollouts) -> None:
        super()._count(rollouts)
        self._add_by_band("accuracy", self.prefix.score(rollouts), rollouts.prompts.samples, overall=False)
        predictions = self.prefix.predictions(rollouts)
        lengths = [agreed_tokens(said or b"", pieces) for said, pieces in zip(predictions, rows_pieces(rollouts), strict=True)]
        self.matched.update(torch.tensor(lengths, dtype=torch.float64))

    def _plain_hits(self, actor: Actor, prompts: PromptBatch) -> Tensor:
        """(P) whether the most likely token behind the bare context is the true one."""
        with torch.no_grad():
            logits, _ = actor.policy.prefill(prompts)
        return logits.argmax(-1).cpu() == torch.tensor([sample.target[0] for sample in prompts.samples])

    def _add_by_band(self, name: str, values: Tensor, samples: list[Sample], overall: bool = True) -> None:
        if overall:
            self._add(name, values)
        entropies = torch.tensor([float("nan") if each.entropy is None else each.entropy for each in samples])
        for band, floor in BANDS.items():
            self._add(f"{name}_{band}", values[entropies > floor])

    def compute(self) -> dict[str, float]:
        metrics = super().compute()
        value = self.matched.compute()
        self.matched.reset()
        name = "matched_tokens"
        return metrics | {name: value["mean"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
