"""Comparison of a policy's ways of reading rows with transformers' own: eager attention on single whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rl.kernels.attention import use_attention
from lit_rl.kernels.fused_head import without_missing
from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.decoding import DecodingBatch
from lit_rl.types import PromptBatch, Sample, TokenBatch


class Rows(NamedTuple):
    """Lengths of the rows that are compared."""

    prompts: list[int]
    """Tokens of each prompt."""
    completions: list[int]
    """Tokens of each completion, as many for each prompt."""


class Comparison:
    """A policy, some rows, and what transformers' eager attention makes of them.

    Args:
        policy: the policy, in eval mode.
        rows: lengths of the rows; they are cut to the model's positions.
        reference: the policy to take results from; default: the policy itself, made eager for as long.
        gradient: whether to compare gradients too, and to learn in train mode; its dropout must be off.
    """

    def __init__(self, policy: Policy, rows: Rows, reference: Policy | None = None, gradient: bool = False) -> None:
        self.policy, self.gradient = policy, gradient
        self.rollouts = _rollouts(policy, rows)
        self.precise = next(policy.parameters()).dtype in (torch.float32, torch.float64)
        reference = reference or policy
        with _eager(reference.causal_lm), torch.set_grad_enabled(gradient):
            found = torch.cat([self._own_logprobs(reference, row) for row in range(len(self.rollouts))])
            self.expected = found.detach()  # (M, V)
            self.expected_gradient = self._gradient(reference, found)

    def sampler(self, shared: bool) -> float:
        """Difference of the sampler's log-probabilities, in nats.

        Args:
            shared: whether the keys of a prompt are held once for its rows.
        """
        rows, policy = self.rollouts, self.policy
        width = rows.completion_ids.shape[1]
        # With one token more no row is finished by its last token.
        counts = rows.prompt.bincount().tolist()
        batch = DecodingBatch(policy, rows.prompts, counts, width + 1, max_rows=0, shared=shared)
        with torch.no_grad():
            batch.admit()
            logits = [batch.logits]
            for tokens in rows.completion_ids.T[:-1]:
                batch.append(tokens, torch.zeros_like(tokens, dtype=torch.bool))
                batch.advance()
                logits.append(batch.logits)
        return self._difference(_logprobs(torch.stack(logits, dim=1)[rows.mask]))

    def learner(self, sequences: bool = False) -> float:
        """Difference of the learner's log-probabilities, in nats, or of its gradient, as a share of it, if that is larger.

        Args:
            sequences: as whole sequences, the way of supervised training; otherwise as completions of shared prompts.
        """
        rows, policy = self.rollouts, self.policy
        policy.train(self.gradient)  # as the learner runs it
        try:
            with torch.set_grad_enabled(self.gradient):
                hidden = policy.sequence_states(_sequences(rows)) if sequences else policy.hidden_states(rows)
                found = _logprobs(policy.head()(hidden))
                gradient = self._gradient(policy, found)
        finally:
            policy.eval()
        difference = self._difference(found.detach())
        if gradient is None or self.expected_gradient is None:
            return difference
        return max(difference, float((gradient - self.expected_gradient).norm() / self.expected_gradient.norm()))

    def _own_logprobs(self, policy: Policy, row: int) -> Tensor:
        """(t, V) log-probabilities by the model itself, from the row alone."""
        rows, owner = self.rollouts, self.rollouts.prompt[row]
        prompt, length = rows.prompts.ids[owner][rows.prompts.mask[owner]], int(rows.lengths[row])
        ids = torch.cat([prompt, rows.completion_ids[row, :length]])
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        return _logprobs(without_missing(logits, policy.missing))

    def _gradient(self, policy: Policy, logprobs: Tensor) -> Tensor | None:
        """Gradient of the embeddings by a sum in which every token weighs differently."""
        if not self.gradient:
            return None
        weights = torch.linspace(-1, 1, logprobs.shape[1], device=logprobs.device)
        total = (logprobs * weights).sum()
        return torch.autograd.grad(total, policy.causal_lm.get_input_embeddings().weight)[0]

    def _difference(self, logprobs: Tensor) -> float:
        # Ids without a token are -inf on both sides.
        gap = torch.where(logprobs == self.expected, 0.0, logprobs - self.expected).abs()
        return float(gap.max() if self.precise else gap.mean())


def _logprobs(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    use_attention(model, "eager")
    try:
        yield
    finally:
        use_attention(model, before)


def _rollouts(policy: Policy, rows: Rows) -> Rollouts:
    """Rows of any tokens, cut to the model's positions: completions first, then prompts."""
    device, context = next(policy.parameters()).device, policy.context or sum(max(part) for part in rows)
    width = max(1, min(max(rows.completions), context - 1))
    lengths = torch.tensor([min(length, width) for length in rows.completions])
    draw = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        # The first ids are often special; the embedding of padding has no gradient.
        return torch.randint(min(3, policy.vocabulary - 1), policy.vocabulary, shape, generator=draw)

    prompts = [tokens(max(1, min(length, context - width))).tolist() for length in rows.prompts]
    samples = [Sample("", "", "", number) for number in range(len(prompts))]
    zeros = torch.zeros(len(lengths), width)
    return Rollouts(
        PromptBatch.pad(prompts, [[] for _ in prompts], samples, pad_id=0),
        completion_ids=tokens(len(lengths), width) * (torch.arange(width) < lengths[:, None]),
        lengths=lengths,
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        logprobs=zeros,
        entropies=zeros,
        temperature=torch.ones(len(lengths)),
    ).to(device)


def _sequences(rows: Rollouts) -> TokenBatch:
    """The same rows as whole sequences, whose targets are the completions."""
    prompts = [ids[mask].tolist() for ids, mask in zip(rows.prompts.ids, rows.prompts.mask, strict=True)]
    completions = [ids[:length].tolist() for ids, length in zip(rows.completion_ids, rows.lengths.tolist(), strict=True)]
    samples = rows.prompts.samples
    whole = PromptBatch.pad(
        [prompts[owner] for owner in rows.prompt.tolist()], completions, [samples[owner] for owner in rows.prompt.tolist()], 0
    )
    return TokenBatch.from_prompts(whole, 0, completion_only=True).to(rows.lengths.device)
