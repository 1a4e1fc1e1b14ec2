"""Log-probability and entropy of given tokens through a linear head, with a gradient worked out by hand.

Logits of one chunk of tokens exist at a time: in the forward pass, and again in the backward pass, where they turn into
their own gradient in place. With probabilities p of the logits z, a token y and the entropy H:

    d log p(y) / d z_v = [v = y] - p_v          d H / d z_v = -p_v (log p_v + H)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LinearHead(NamedTuple):
    """Linear map to logits, with the scale and cap of some models: ``cap tanh(scale (W h + b) / cap)``."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    """(V)."""
    scale: float = 1.0
    """Factor on the logits (Cohere, Granite)."""
    cap: float = 0.0
    """Soft limit of the logits (Gemma); 0 for none."""
    missing: Tensor | None = None
    """Ids without a token, whose logits are -inf; None for none."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """(M, H) hidden states -> (M, V) logits."""
        return without_missing(self.linear(hidden), self.missing)

    def linear(self, hidden: Tensor) -> Tensor:
        """(M, H) hidden states -> (M, V) logits, finite at ids without a token too."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits if self.scale == 1 else logits * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def without_missing(logits: Tensor, missing: Tensor | None) -> Tensor:
    """(M, V) logits with -inf at the given ids, in place: a head often has more rows than its tokenizer has tokens."""
    return logits if missing is None else logits.index_fill_(1, missing, -torch.inf)


class Chunks(NamedTuple):
    """Chunks of M tokens, and the distribution that each token is drawn from: equal in forward and backward pass."""

    size: int
    """Tokens of a chunk."""
    targets: Tensor
    """(M) token ids."""
    temperature: Tensor | None
    """(M); None for 1."""
    kept: tuple[Tensor, Tensor] | None
    """Ids (K) and counts (M) of the tokens that top-k and top-p left, see `kept_mask`; None for all tokens."""
    kept_offsets: list[int]
    """(M + 1) kept ids before each position."""
    details: bool
    """Whether to compute entropies and hits."""

    def slices(self) -> list[slice]:
        count = len(self.targets)
        return [slice(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def mask(self, part: slice, vocabulary: int) -> Tensor | None:
        """(m, V) bool, True at kept tokens; None if all are kept."""
        if self.kept is None:
            return None
        ids, counts = self.kept
        return kept_mask(ids[self.kept_offsets[part.start] : self.kept_offsets[part.stop]], counts[part], vocabulary)

    def adjust(self, logits: Tensor, part: slice) -> Tensor:
        """(m, V) logits, in at least float32, divided by the temperature, -inf at tokens that were not kept; in place."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature is not None:
            logits = logits.div_(self.temperature[part, None])
        mask = self.mask(part, logits.shape[1])
        return logits if mask is None else logits.masked_fill_(~mask, -torch.inf)


def kept_mask(ids: Tensor, counts: Tensor, vocabulary: int) -> Tensor:
    """Spread a flat list of kept token ids into a mask.

    Args:
        ids: (K) token ids, position by position.
        counts: (M) number of ids of each position; 0 if the position keeps every token.
        vocabulary: V.

    Returns:
        (M, V) bool, True where a token was kept.
    """
    mask = torch.zeros(len(counts), vocabulary, dtype=torch.bool, device=ids.device)
    positions = torch.arange(len(counts), device=ids.device).repeat_interleave(counts.long())  # (K)
    mask[positions, ids.long()] = True
    return mask | (counts == 0)[:, None]


class FusedScores(torch.autograd.Function):
    """(M) log-probabilities, (M) entropies and (M) hits of given tokens; the first two have gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: LinearHead, chunks: Chunks
    ) -> tuple[Tensor, Tensor, Tensor]:
        columns = []
        ctx.dtype = _compute_dtype(hidden)
        # Autocast has ended when the backward pass computes the same logits again, so both passes cast by hand.
        with torch.autocast(hidden.device.type, enabled=False):
            head = _cast(head, ctx.dtype)
            for part in chunks.slices():
                logits = chunks.adjust(head(hidden[part].to(ctx.dtype)), part)
                columns.append(_score_chunk(logits, chunks.targets[part], chunks.details))
        logprobs, entropies, hits, lse = (torch.cat(column) for column in zip(*columns, strict=True))  # (M) each
        ctx.save_for_backward(hidden, weight, bias, entropies, lse)
        # Tensors go through `save_for_backward` alone, which notices a change in place; the head keeps scale and cap.
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
            rows = hidden[part].to(ctx.dtype)  # (m, H)
            logit_grad = _logit_gradient(head, ctx.chunks, part, rows, grads[0], grads[1], entropies, lse)  # (m, V)
            hidden_grad[part] = logit_grad @ head.weight
            if weight_grad is not None:
                _add_product(weight_grad, logit_grad, rows)
            if bias_grad is not None:
                bias_grad += logit_grad.sum(0).to(bias_grad.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None


fused_scores: Callable[[Tensor, Tensor, Tensor | None, LinearHead, Chunks], tuple[Tensor, Tensor, Tensor]] = FusedScores.apply


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _cast(head: LinearHead, dtype: torch.dtype) -> LinearHead:
    return head._replace(weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))


def _score_chunk(logits: Tensor, targets: Tensor, details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(m) each: log-probability, entropy, hit, log-sum-exp of the logits (m, V), which are overwritten."""
    lse = logits.logsumexp(1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - lse
    if not details:
        return logprobs, torch.zeros_like(logprobs), torch.zeros_like(targets, dtype=torch.bool), lse
    hits = logits.argmax(1) == targets
    probs = (logits - lse[:, None]).exp_()  # (m, V)
    # H = lse - sum_v p_v z_v; a token of probability 0 has z_v = -inf, and 0 * -inf would be NaN.
    entropies = lse - probs.mul_(logits.masked_fill_(logits == -torch.inf, 0.0)).sum(1)
    return logprobs, entropies, hits, lse


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
    """(m, V) gradient by the head's linear output ``W h + b``, in the dtype of the rows.

    Args:
        head: the head.
        chunks: all tokens.
        part: the chunk.
        rows: (m, H) hidden states of the chunk.
        logprob_grads: (M) gradients by the log-probabilities.
        entropy_grads: (M) gradients by the entropies.
        entropies: (M).
        lse: (M) log-sum-exp of the logits.
    """
    raw = head.linear(rows)  # (m, V)
    # d tanh = 1 - tanh^2. First, since `raw` may be divided and masked in place below.
    cap_slope = 1 - (raw / head.cap).square() if head.cap else None
    logp = chunks.adjust(without_missing(raw, head.missing), part).sub_(lse[part, None])
    grad = logp.exp()
    weight = logprob_grads[part, None].to(grad.dtype)  # (m, 1)
    # Autograd hands in zeros for entropies that no loss uses.
    if chunks.details and bool(entropy_grads[part].any()):
        # -p_v (g_logprob + g_entropy (log p_v + H)); again 0 * -inf would be NaN.
        entropy_part = logp.masked_fill_(logp == -torch.inf, 0.0).add_(entropies[part, None]).mul_(entropy_grads[part, None])
        grad = grad.mul_(entropy_part.add_(weight)).neg_()
    else:
        grad = grad.mul_(-weight)
    grad.scatter_add_(1, chunks.targets[part, None], weight)  # the term [v = y]
    if chunks.temperature is not None:
        grad = grad.div_(chunks.temperature[part, None])
    if cap_slope is not None:
        grad = grad.mul_(cap_slope)
    return (grad if head.scale == 1 else grad.mul_(head.scale)).to(rows.dtype)


def _add_product(total: Tensor, logit_grad: Tensor, rows: Tensor) -> None:
    """``total += logit_grad^T rows``: (V, H) from (m, V) and (m, H)."""
    if total.dtype == logit_grad.dtype:
        total.addmm_(logit_grad.t(), rows)  # without a second tensor of the weights' size
    else:
        total += logit_grad.t() @ rows
