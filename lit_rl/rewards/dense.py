"""Dense credit of RPT: a wrong prediction earns the probability that the policy gives it without reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_rl.rewards.prefix_match import AnswerFormat, PrefixMatch
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.text.token_bytes import token_bytes

BOXED = AnswerFormat()
PROMPTS_PER_FORWARD = 8
"""Texts of one forward. A fixed number: under sharded weights all ranks must run equally many forwards."""


class DensePrefixMatch(PrefixMatch):
    """1 for a right prediction, as in `PrefixMatch`; the probability of its first token for a wrong one.

    The probability is the policy's own, at temperature 1, after the plain text before the position, without template and
    reasoning: the dense rewards of arXiv 2506.08007, appendix A. The first token of a prediction is the longest token of the
    vocabulary that it begins with. No prediction earns 0. Logged beside the parts of `PrefixMatch`: ``dense``.

    Args:
        answer: place of the prediction in a completion.
        conditional: whether wrong predictions earn something only in groups with a right one.
        no_answer: reward of a completion without a prediction, 0 or less.
    """

    def __init__(self, answer: AnswerFormat = BOXED, conditional: bool = False, no_answer: float = 0.0) -> None:
        super().__init__(answer, "exact", no_answer)
        self.conditional = conditional
        self._tokens: dict[bytes, int] = {}
        self._probabilities: Tensor | None = None  # (N), for the rollouts that were prepared last

    @torch.no_grad()
    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        """Ask the policy for the probability of each prediction's first token; each text runs once, whatever its rows."""
        self._tokens = self._tokens or vocabulary_bytes(actor.renderer.tokenizer)
        first = [first_token(prediction or b"", self._tokens) for prediction in self.answers(rollouts)]
        device = actor.runtime.device
        tokens = torch.tensor([-1 if token is None else token for token in first], device=device)  # (N)
        texts, prompt = actor.renderer.plain(rollouts.prompts).to(device), rollouts.prompt
        found = torch.zeros(len(rollouts), device=device)
        # By prompt and not by row: rows of a prompt share its distribution, and prompts are equally many on all ranks.
        for chunk in torch.arange(len(texts)).split(PROMPTS_PER_FORWARD):
            with actor.runtime.forward_context():
                logits, _ = actor.policy.prefill(texts.select(chunk.tolist()))  # (p, V), at the last position only
            start, stop = int(chunk[0]), int(chunk[-1]) + 1
            rows = ((prompt >= start) & (prompt < stop)).nonzero()[:, 0]  # (n), in any order of prompts
            # Outside the forward context and in float32: in bf16 a probability has two or three digits.
            probabilities = logits.float().softmax(-1)[prompt[rows] - start]  # (n, V)
            found[rows] = probabilities.gather(1, tokens[rows, None].clamp(min=0))[:, 0]
        # The clamp above gave rows without a token the probability of token 0.
        self._probabilities = (found * (tokens >= 0)).cpu()

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        if self._probabilities is None or len(self._probabilities) != len(rollouts):
            raise ValueError("asks the policy and was called without `prepare`; in an evaluation write PrefixMatch instead.")
        parts = super().parts(rollouts)
        hits = parts[self.name] > 0
        dense = torch.where(hits, 1.0, self._probabilities)  # (N)
        if self.conditional:
            solved = rollouts.within_groups(hits, lambda group: group.any(1, keepdim=True).expand_as(group))
            dense = dense * solved  # (N), 0 in groups without a right prediction
        return parts | {"dense": dense}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        return parts["dense"] + self.no_answer * (1 - parts["answered"])


def vocabulary_bytes(tokenizer: Any) -> dict[bytes, int]:
    """Token ids by the bytes of the token, without special tokens."""
    special = set(tokenizer.all_special_ids)
    # Of two tokens with equal bytes the later one is kept: SentencePiece has its single bytes before its pieces.
    return {piece: token for token, piece in enumerate(token_bytes(tokenizer)) if piece and token not in special}


def first_token(text: bytes, tokens: Mapping[bytes, int]) -> int | None:
    """Id of the longest token that a text begins with, None without one; a token may end inside a character."""
    sizes = range(min(len(text), max(map(len, tokens), default=0)), 0, -1)
    return next((tokens[text[:size]] for size in sizes if text[:size] in tokens), None)
