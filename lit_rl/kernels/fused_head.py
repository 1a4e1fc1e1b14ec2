"""Log-probability and entropy of given tokens through a linear head, its gradient worked out by hand.

Logits of one chunk of tokens exist at a time, in the forward pass and again in the backward pass, where they are turned into
their own gradient in place:

    d log p(y) / d z_v = [v = y] - p_v          d H / d z_v = -p_v (log p_v + H)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class LinearHead(NamedTuple):
    """A linear map to logits and what some models do to them: ``cap tanh(scale (W h + b) / cap)``."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    """(V), None without."""
    scale: float = 1.0
    """Factor on the logits (Cohere, Granite)."""
    cap: float = 0.0
    """Soft limit of the logits (Gemma), 0 for none."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """(M, H) hidden states -> (M, V) logits."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits if self.scale == 1 else logits * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


class Chunks(NamedTuple):
    """What is the same for forward and backward: how many tokens at a time, and how their logits become a distribution."""

    size: int
    targets: Tensor
    temperature: Tensor | None
    kept_ids: Tensor | None
    kept_counts: Tensor | None
    kept_offsets: list[int]
    details: bool

    def slices(self) -> list[slice]:
        count = len(self.targets)
        return [slice(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def adjusted(self, logits: Tensor, part: slice) -> Tensor:
        """(m, V) logits in at least float32, divided by the temperature, tokens that were not kept at -inf; in place."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature is not None:
            logits = logits.div_(self.temperature[part, None])
        if self.kept_ids is not None and self.kept_counts is not None:
            ids = self.kept_ids[self.kept_offsets[part.start] : self.kept_offsets[part.stop]]
            logits = logits.masked_fill_(~kept_mask(ids, self.kept_counts[part], logits.shape[1]), -torch.inf)
        return logits


def kept_mask(ids: Tensor, counts: Tensor, vocabulary: int) -> Tensor:
    """Spread a flat list of kept token ids into a mask.

    Args:
        ids: (K) token ids, those of the first position first.
        counts: (M) how many of them belong to each position; 0 means that the position keeps every token.
        vocabulary: V.

    Returns:
        (M, V) bool, True where a token was kept.
    """
    mask = torch.zeros(len(counts), vocabulary, dtype=torch.bool, device=ids.device)
    rows = torch.arange(len(counts), device=ids.device).repeat_interleave(counts.long())
    mask[rows, ids.long()] = True
    return mask | (counts == 0)[:, None]


class FusedScores(torch.autograd.Function):
    """(M) log-probabilities, (M) entropies and (M) hits of given tokens; gradients of the first two."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: LinearHead, chunks: Chunks
    ) -> tuple[Tensor, Tensor, Tensor]:
        columns = []
        ctx.dtype = _compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _cast(head, ctx.dtype)
            for part in chunks.slices():
                logits = chunks.adjusted(head(hidden[part].to(ctx.dtype)), part)
                columns.append(_scores(logits, chunks.targets[part], chunks.details))
        logprobs, entropies, hits, lse = (torch.cat(column) for column in zip(*columns, strict=True))
        ctx.save_for_backward(hidden, weight, bias, entropies, lse)
        ctx.head, ctx.chunks = head._replace(weight=weight[:0], bias=None), chunks
        ctx.mark_non_differentiable(hits)
        return logprobs, entropies, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, entropies, lse = ctx.saved_tensors
        head = _cast(ctx.head._replace(weight=weight, bias=bias), ctx.dtype)
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        hidden_grad = torch.empty_like(hidden)
        for part in ctx.chunks.slices():
            rows = hidden[part].to(ctx.dtype)
            slope = _logit_gradient(head, ctx.chunks, part, rows, grads[0], grads[1], entropies, lse)
            hidden_grad[part] = slope @ head.weight
            if weight_grad is not None:
                _add_product(weight_grad, slope, rows)
            if bias_grad is not None:
                bias_grad += slope.sum(0).to(bias_grad.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _cast(head: LinearHead, dtype: torch.dtype) -> LinearHead:
    return head._replace(weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))


def _scores(logits: Tensor, targets: Tensor, details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(m) each: log-probability, entropy, whether the token is the most likely one, log-sum-exp. Uses the logits up."""
    lse = logits.logsumexp(1)
    picked = logits.gather(1, targets[:, None])[:, 0] - lse
    if not details:
        return picked, torch.zeros_like(picked), torch.zeros_like(targets, dtype=torch.bool), lse
    hits = logits.argmax(1) == targets
    chances = (logits - lse[:, None]).exp_()
    entropies = lse - chances.mul_(logits.masked_fill_(logits == -torch.inf, 0.0)).sum(1)
    return picked, entropies, hits, lse


def _logit_gradient(
    head: LinearHead,
    chunks: Chunks,
    part: slice,
    rows: Tensor,
    logprob_grads: Tensor,
    entropy_grads: Tensor,
    entropies: Tensor,
    lse: Tensor,
) -> Tensor:
    """(m, V) gradient by the head's linear output, in the dtype of the rows."""
    raw = head(rows)
    # A cap's slope needs its output before temperature and mask, which work in place where nothing was cast.
    cap_slope = 1 - (raw / head.cap).square() if head.cap else None
    logp = chunks.adjusted(raw, part).sub_(lse[part, None])
    slope = logp.exp()
    weight = logprob_grads[part, None].to(slope.dtype)
    if chunks.details and bool(entropy_grads[part].any()):
        spread = logp.masked_fill_(logp == -torch.inf, 0.0).add_(entropies[part, None]).mul_(entropy_grads[part, None])
        slope = slope.mul_(spread.add_(weight)).neg_()
    else:
        slope = slope.mul_(-weight)
    slope.scatter_add_(1, chunks.targets[part, None], weight)
    if chunks.temperature is not None:
        slope = slope.div_(chunks.temperature[part, None])
    if cap_slope is not None:
        slope = slope.mul_(cap_slope)
    return (slope if head.scale == 1 else slope.mul_(head.scale)).to(rows.dtype)


def _add_product(total: Tensor, slope: Tensor, rows: Tensor) -> None:
    """``total += slope^T rows``, without a copy where the types agree."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.t(), rows)
    else:
        total += slope.t() @ rows
