"""Scoring given tokens in chunks against the plain softmax over all logits."""

import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_rl.kernels import logprobs
from lit_rl.kernels.fused_head import LinearHead, kept_mask
from lit_rl.kernels.logprobs import distribution, entropy, score_tokens

TOKENS, WIDTH, VOCABULARY = 7, 3, 5


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, tokens and the weights of a head, in float64."""
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    head = torch.randn(WIDTH, VOCABULARY, dtype=torch.float64, requires_grad=True)
    return hidden, torch.tensor([0, 4, 2, 2, 1, 3, 0]), head


def plain(hidden, tokens, head, temperature=None, kept=None):
    """The same by one log_softmax over everything."""
    logits = hidden @ head
    if temperature is not None:
        logits = logits / temperature[:, None]
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    logp = logits.log_softmax(-1)
    spread = torch.distributions.Categorical(logits=logits).entropy()
    return logp[torch.arange(len(tokens)), tokens], spread


def close(value, expected) -> bool:
    return bool((value - expected).norm() <= 1e-12 * expected.norm())


@pytest.fixture
def chunks_of_three(monkeypatch):
    """Two whole chunks and a part of one, each computed again in the backward pass."""
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 3 * VOCABULARY)


@pytest.mark.usefixtures("chunks_of_three")
def test_log_probabilities_are_those_of_the_plain_softmax():
    hidden, tokens, head = problem()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY)
    assert close(scores.logprobs, plain(hidden, tokens, head)[0])


@pytest.mark.usefixtures("chunks_of_three")
def test_gradients_are_those_of_the_plain_softmax():
    hidden, tokens, head = problem()
    weights = torch.randn(TOKENS, dtype=torch.float64)
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY)
    gradients = torch.autograd.grad((weights * scores.logprobs).sum(), [hidden, head])
    expected = torch.autograd.grad((weights * plain(hidden, tokens, head)[0]).sum(), [hidden, head])
    assert all(close(*pair) for pair in zip(gradients, expected, strict=True))


@pytest.mark.usefixtures("chunks_of_three")
def test_every_token_has_its_own_temperature():
    hidden, tokens, head = problem()
    temperature = torch.linspace(0.3, 2, TOKENS, dtype=torch.float64)
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, temperature)
    logp, spread = plain(hidden, tokens, head, temperature)
    assert close(scores.logprobs, logp)
    assert close(scores.entropies, spread)


def supports() -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What each of the tokens was drawn from, flat and as a mask; position 3 keeps everything."""
    sets = [[0, 1], [4], [2, 3, 0], [], [1, 0], [3, 2], [0, 4, 1]]
    flat = torch.tensor([token for kept in sets for token in kept], dtype=torch.int32)
    counts = torch.tensor([len(kept) for kept in sets], dtype=torch.int32)
    mask = torch.tensor([[not kept or token in kept for token in range(VOCABULARY)] for kept in sets])
    return (flat, counts), mask


@pytest.mark.usefixtures("chunks_of_three")
def test_log_probabilities_are_renormalised_on_the_kept_tokens():
    hidden, tokens, head = problem()
    kept, mask = supports()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, kept=kept)
    logp, spread = plain(hidden, tokens, head, kept=mask)
    assert close(scores.logprobs, logp)
    # The plain entropy is taken over finite stand-ins for -inf.
    assert torch.allclose(scores.entropies, spread, atol=1e-12)


@pytest.mark.usefixtures("chunks_of_three")
def test_gradients_on_the_kept_tokens_are_those_of_the_plain_softmax():
    hidden, tokens, head = problem()
    kept, mask = supports()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, kept=kept, entropy_grad=True)
    gradients = torch.autograd.grad((scores.logprobs + 0.5 * scores.entropies).sum(), [hidden, head])
    logp = (hidden @ head).masked_fill(~mask, -torch.inf).log_softmax(-1)
    spread = -(logp.exp() * logp.masked_fill(~mask, 0.0)).sum(-1)
    picked = logp[torch.arange(TOKENS), tokens]
    expected = torch.autograd.grad((picked + 0.5 * spread).sum(), [hidden, head])
    assert all(close(*pair) for pair in zip(gradients, expected, strict=True))


def test_values_and_gradients_do_not_depend_on_the_chunks(monkeypatch):
    hidden, tokens, head = problem()
    kept, _ = supports()
    found = []
    for tokens_per_chunk in (3, 1, TOKENS, 100):
        monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", tokens_per_chunk * VOCABULARY)
        scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, kept=kept, entropy_grad=True)
        found.append((*scores, *torch.autograd.grad((scores.logprobs + 0.5 * scores.entropies).sum(), [hidden, head])))
    for other in found[1:]:
        assert all(torch.allclose(a.double(), b.double(), atol=1e-12) for a, b in zip(found[0], other, strict=True))


def test_a_token_that_was_kept_alone_is_certain():
    hidden, tokens, head = problem()
    kept, _ = supports()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, kept=kept)
    assert scores.logprobs[1].tolist() == 0.0
    assert scores.entropies[1].tolist() == 0.0


@pytest.mark.usefixtures("chunks_of_three")
def test_the_gradient_of_the_entropy_is_that_of_the_plain_entropy():
    hidden, tokens, head = problem()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY, entropy_grad=True)
    spread = plain(hidden, tokens, head)[1]
    assert close(scores.entropies, spread)
    gradients = torch.autograd.grad(scores.entropies.sum(), [hidden, head])
    assert all(close(*pair) for pair in zip(gradients, torch.autograd.grad(spread.sum(), [hidden, head]), strict=True))


@pytest.mark.usefixtures("chunks_of_three")
def test_the_entropy_carries_no_gradient_unless_asked():
    hidden, tokens, head = problem()
    scores = score_tokens(hidden, tokens, lambda rows: rows @ head, VOCABULARY)
    assert close(scores.entropies, plain(hidden, tokens, head)[1])
    assert not scores.entropies.requires_grad


@pytest.mark.usefixtures("chunks_of_three")
def test_hits_are_where_the_token_is_the_most_likely_one():
    head = torch.eye(VOCABULARY)
    hidden = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2, 1, 0, 0]), VOCABULARY).float()
    scores = score_tokens(hidden, torch.tensor([0, 4, 2, 2, 1, 3, 0]), lambda rows: rows @ head, VOCABULARY)
    assert scores.hits.tolist() == [True, False, True, True, True, False, True]


@pytest.mark.parametrize("kept", [None, (torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))])
def test_no_tokens_have_no_scores_and_a_gradient_of_zero(kept):
    hidden, tokens, head = problem()
    scores = score_tokens(hidden[:0], tokens[:0], lambda rows: rows @ head, VOCABULARY, kept=kept)
    assert [len(value) for value in scores] == [0, 0, 0]
    scores.logprobs.sum().backward()
    assert float(head.grad.abs().max()) == 0.0


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.bfloat16)
    logp = distribution(logits)
    assert logp.dtype == torch.float32
    # log(e^2 / (e^2 + 1 + e)) = 2 - log(11.1073379) = -0.4076060
    assert float(logp[0, 0]) == pytest.approx(-0.4076060, abs=1e-6)


def test_a_flat_support_spreads_into_rows():
    mask = kept_mask(torch.tensor([3, 1, 0]), torch.tensor([2, 0, 1]), 4)
    assert mask.int().tolist() == [[0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_the_entropy_of_equal_chances_is_the_logarithm_of_their_number():
    logp = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert entropy(logp).tolist() == pytest.approx([math.log(4), math.log(2), 0.0])


# --- memory ------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def score_many(num_tokens: int, kept: bool = False, linear: bool = False) -> torch.Tensor:
    """Loss over ``num_tokens`` tokens of a vocabulary of 500, from hidden states of width 2."""
    hidden = torch.randn(num_tokens, 2, requires_grad=True)
    weight = torch.randn(500, 2, requires_grad=True)
    head = LinearHead(weight) if linear else lambda rows: rows @ weight.t()
    tokens = torch.zeros(num_tokens, dtype=torch.long)
    ones = torch.ones(num_tokens)
    support = (torch.zeros(num_tokens, dtype=torch.int32), ones.int()) if kept else None
    scores = score_tokens(hidden, tokens, head, 500, ones, support, entropy_grad=True)
    return scores.logprobs.sum() + scores.entropies.sum()


def test_no_tensor_is_larger_than_one_chunk_of_logits_forward_or_backward(monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 10 * 500)
    for kept, linear in product((False, True), (False, True)):
        with Largest() as largest:
            score_many(100, kept, linear).backward()
        assert largest.numel == 10 * 500, (kept, linear)


def test_what_the_forward_keeps_for_the_backward_does_not_grow_with_the_vocabulary(monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 10 * 500)
    for linear in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each.numel()) or each, lambda each: each):  # noqa: B023
            score_many(1000, linear=linear)
        # 1000 tokens of 500 logits would be 500000 numbers.
        assert sum(saved) < 10_000, linear


@pytest.mark.usefixtures("chunks_of_three")
def test_dropout_of_a_head_is_the_same_in_forward_and_backward_pass():
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    masks = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        dropped = torch.nn.functional.dropout(torch.ones(len(rows), VOCABULARY), 0.5)
        masks.append(dropped)
        return rows[:, :1] * dropped

    scores = score_tokens(hidden, torch.tensor([0, 4, 2, 2, 1, 3, 0]), head, VOCABULARY)
    scores.logprobs.sum().backward()
    forward, backward = masks[:3], masks[3:]
    assert all(any(torch.equal(mask, other) for other in forward) for mask in backward)
