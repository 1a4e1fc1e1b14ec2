"""Data that flows through a run, and the legend of its shapes.

    P  prompts                          L  prompt tokens, left-padded
    G  completions per prompt           T  completion tokens, right-padded
    N  rows, usually P * G              S  tokens of prompt and completion together
    V  vocabulary                       H  hidden width

A mask is True at tokens that count. Batches are plain classes with a ``to`` method, not dataclasses: Lightning casts every
float tensor inside a dataclass to the run's precision (``bf16-true`` turns a reward of 1001 into 1000).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Sample(NamedTuple):
    """One problem as text.

    Example: ``Sample("<bos><big>12+34<answer>", "46", "46", 7)``.
    """

    prompt: str
    """Text that the model is given, special tokens written out."""
    completion: str
    """A true continuation without the end token, for SFT; empty if the source has none."""
    reference: str
    """Gold answer that a reward compares with."""
    number: int
    """Number in the data set; sampling is keyed by it."""
    context: Sequence[int] = ()
    """The prompt as token ids, if a text was cut between its own tokens: encoding ``prompt`` might give others."""
    target: Sequence[int] = ()
    """Token ids that follow ``context``."""
    entropy: float | None = None
    """Entropy of the next token in nats, if a proxy model was asked for it."""
    question: str = ""
    """The bare question, without instruction and template; empty if the data are not questions."""


class TokenScores(NamedTuple):
    """Scores of given tokens under a policy, one value per token."""

    logprobs: Tensor
    """Log-probabilities, with gradient."""
    entropies: Tensor
    """Entropies of the distributions in nats, with gradient only if it was asked for."""
    hits: Tensor
    """bool, True if the token is the most likely one."""


class PromptBatch:
    """Prompts ready for the model, with their samples.

    Args:
        ids: (P, L) token ids, left-padded.
        mask: (P, L) bool, True at the prompt's own tokens.
        completions: P lists of token ids: true continuations, with the end token.
        samples: the P samples.
    """

    def __init__(self, ids: Tensor, mask: Tensor, completions: list[list[int]], samples: list[Sample]) -> None:
        self.ids, self.mask = ids, mask
        self.completions, self.samples = completions, samples

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def pad(cls, prompts: Sequence[list[int]], completions: list[list[int]], samples: list[Sample], pad_id: int) -> PromptBatch:
        """Left-pad token lists into one batch."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(width) >= (width - lengths)[:, None]  # (P, L)
        return cls(ids, mask, completions, samples)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the samples in their data set."""
        return [sample.number for sample in self.samples]

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(self.ids.to(device), self.mask.to(device), self.completions, self.samples)

    def select(self, rows: list[int]) -> PromptBatch:
        """The given prompts, without padding that none of them needs."""
        mask = self.mask[rows]
        skip = int((~mask).long().cumprod(1).sum(1).min())  # columns of padding in every row
        return PromptBatch(
            self.ids[rows][:, skip:],
            mask[:, skip:],
            [self.completions[row] for row in rows],
            [self.samples[row] for row in rows],
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors, strings, numbers and lists only, so that ``torch.load(weights_only=True)`` opens it."""
        samples = [list(sample) for sample in self.samples]
        return {"ids": self.ids, "mask": self.mask, "completions": self.completions, "samples": samples}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PromptBatch:
        """A batch from a `state_dict`."""
        samples = [Sample(*fields) for fields in state["samples"]]
        return cls(state["ids"], state["mask"], state["completions"], samples)

    @classmethod
    def join(cls, batches: Sequence[PromptBatch]) -> PromptBatch:
        """The prompts of several batches, one batch after another, left-padded to the widest."""
        width = max(batch.ids.shape[1] for batch in batches)
        ids, mask = (
            # Zeros serve for ids too: the mask hides them.
            torch.cat([pad(tensor, (width - tensor.shape[1], 0)) for tensor in tensors])
            for tensors in ([batch.ids for batch in batches], [batch.mask for batch in batches])
        )
        completions = [completion for batch in batches for completion in batch.completions]
        return cls(ids, mask, completions, [sample for batch in batches for sample in batch.samples])


class TokenBatch:
    """Whole sequences for supervised training, right-padded.

    Args:
        ids: (N, S) token ids.
        lengths: (N) tokens in each row.
        target: (N, S) bool, True at tokens whose prediction counts.
    """

    def __init__(self, ids: Tensor, lengths: Tensor, target: Tensor) -> None:
        self.ids, self.lengths, self.target = ids, lengths, target

    @classmethod
    def from_prompts(cls, batch: PromptBatch, pad_id: int, completion_only: bool) -> TokenBatch:
        """Prompt and true completion in one row; targets are the completions, or all tokens but the first."""
        prompts = [row[keep].tolist() for row, keep in zip(batch.ids, batch.mask, strict=True)]
        rows = [prompt + completion for prompt, completion in zip(prompts, batch.completions, strict=True)]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        first = torch.tensor([len(prompt) if completion_only else 1 for prompt in prompts])
        place = torch.arange(width)
        # (N, S), from place 1 on even if the prompt is empty: nothing predicts a row's first token.
        target = (place < lengths[:, None]) & (place >= first[:, None].clamp(min=1))
        return cls(ids, lengths, target)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> Tensor:
        """(N, S) bool, True at real tokens."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.ids.to(device), self.lengths.to(device), self.target.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Tensors only, so that ``torch.load(weights_only=True)`` opens it."""
        return {"ids": self.ids, "lengths": self.lengths, "target": self.target}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TokenBatch:
        """A batch from a `state_dict`."""
        return cls(**state)

    def select(self, rows: list[int]) -> TokenBatch:
        """The given rows, cut to the longest of them."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        return TokenBatch(self.ids[rows, :width], lengths, self.target[rows, :width])
