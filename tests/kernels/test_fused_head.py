"""The gradient worked out by hand against autograd on all logits."""

import pytest
import torch

from lit_rl.kernels import logprobs
from lit_rl.kernels.fused_head import LinearHead, kept_mask
from lit_rl.kernels.logprobs import score_tokens

TOKENS, WIDTH, VOCABULARY = 9, 4, 6
COUNTS = torch.tensor([0, 2, 3, 0, 1, 6, 2, 0, 4])


def problem(dtype=torch.float64):
    """Hidden states, weights and bias of a head, tokens and the flat list of kept ones, each token among its own."""
    torch.manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True)
    tokens = torch.tensor([0, 5, 2, 2, 1, 3, 0, 4, 5])
    kept = [
        [int(token), *(v for v in range(VOCABULARY) if v != token)][:count] for token, count in zip(tokens, COUNTS, strict=True)
    ]
    return hidden, weight, bias, tokens, torch.tensor([v for row in kept for v in row])


def plain(hidden, weight, bias, tokens, scale, cap, temperature, mask):
    """Log-probabilities and entropies by one softmax over everything."""
    logits = (hidden @ weight.t() + (0 if bias is None else bias)) * scale
    if cap:
        logits = torch.tanh(logits / cap) * cap
    if temperature is not None:
        logits = logits / temperature[:, None]
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)
    return logp.gather(1, tokens[:, None])[:, 0], entropy


def check_against_autograd(scale, cap, with_bias, heat, support, with_entropy):
    hidden, weight, bias, tokens, ids = problem()
    bias = bias if with_bias else None
    temperature = torch.linspace(0.5, 2, TOKENS, dtype=torch.float64) if heat else None
    kept = (ids, COUNTS) if support else None
    mask = kept_mask(ids, COUNTS, VOCABULARY) if support else None
    head = LinearHead(weight, bias, scale, cap)
    scores = score_tokens(hidden, tokens, head, VOCABULARY, temperature, kept, with_entropy)
    expected = plain(hidden, weight, bias, tokens, scale, cap, temperature, mask)
    assert torch.allclose(scores.logprobs, expected[0], atol=1e-12)
    assert torch.allclose(scores.entropies, expected[1], atol=1e-12)
    slopes = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]

    def loss(values):
        return (values[0] * slopes).sum() + (0.3 * (values[1] * slopes.flip(0)).sum() if with_entropy else 0)

    found = torch.autograd.grad(loss(scores), leaves)
    wanted = torch.autograd.grad(loss(expected), leaves)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted, strict=True))


# Every pair of values of two options (an orthogonal array), and everything at once.
@pytest.mark.parametrize(
    ("scale", "cap", "with_bias", "heat", "support", "with_entropy"),
    [
        (1.0, 0.0, False, False, False, False),
        (1.0, 0.0, False, True, True, True),
        (1.0, 2.0, True, False, False, True),
        (1.0, 2.0, True, True, True, False),
        (0.25, 0.0, True, False, True, False),
        (0.25, 0.0, True, True, False, True),
        (0.25, 2.0, False, False, True, True),
        (0.25, 2.0, False, True, False, False),
        (0.25, 2.0, True, True, True, True),
    ],
)
def test_values_and_gradients_are_those_of_autograd(monkeypatch, scale, cap, with_bias, heat, support, with_entropy):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 4 * VOCABULARY)
    check_against_autograd(scale, cap, with_bias, heat, support, with_entropy)


@pytest.mark.parametrize("tokens_per_chunk", [1, 9, 100])
def test_values_and_gradients_do_not_depend_on_the_chunks(monkeypatch, tokens_per_chunk):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", tokens_per_chunk * VOCABULARY)
    check_against_autograd(0.25, 2.0, True, True, True, True)


def test_a_head_that_does_not_learn_gets_no_gradient():
    hidden, weight, _, tokens, _ = problem()
    score_tokens(hidden, tokens, LinearHead(weight.detach()), VOCABULARY).logprobs.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_without_gradient_of_the_entropy_it_carries_none():
    hidden, weight, _, tokens, _ = problem()
    scores = score_tokens(hidden, tokens, LinearHead(weight), VOCABULARY)
    assert scores.logprobs.requires_grad
    assert not scores.entropies.requires_grad


def test_hits_are_the_most_likely_tokens():
    hidden, weight, _, tokens, _ = problem()
    scores = score_tokens(hidden, tokens, LinearHead(weight), VOCABULARY)
    assert torch.equal(scores.hits, (hidden @ weight.t()).argmax(1) == tokens)


def test_under_autocast_products_are_bfloat16_and_the_rest_is_not():
    hidden, weight, _, tokens, _ = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_tokens(hidden, tokens, LinearHead(weight), VOCABULARY)
    gradients = torch.autograd.grad(scores.logprobs.sum(), [hidden, weight])
    logp = (hidden.bfloat16() @ weight.bfloat16().t()).float().log_softmax(-1)
    expected = logp.gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(scores.logprobs, expected, atol=1e-6)
    assert scores.logprobs.dtype == torch.float32
    wanted = torch.autograd.grad(expected.sum(), [hidden, weight])
    assert all(a.dtype == torch.float32 for a in gradients)
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(gradients, wanted, strict=True))


def test_a_bfloat16_model_has_scores_in_float32_and_gradients_in_its_own_type():
    hidden, weight, _, tokens, _ = problem(torch.bfloat16)
    scores = score_tokens(hidden, tokens, LinearHead(weight), VOCABULARY)
    assert scores.logprobs.dtype == torch.float32
    assert {g.dtype for g in torch.autograd.grad(scores.logprobs.sum(), [hidden, weight])} == {torch.bfloat16}


def test_no_token_at_all_has_no_scores():
    hidden, weight, _, tokens, _ = problem()
    assert score_tokens(hidden[:0], tokens[:0], LinearHead(weight), VOCABULARY).logprobs.shape == (0,)
