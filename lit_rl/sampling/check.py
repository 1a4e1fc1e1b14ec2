"""Check of a model at the start: refuses a model type that cannot be a policy, and finds the shortcuts that it allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lit_rl.kernels.attention import NAME, use_attention
from lit_rl.models.capabilities import Capabilities
from lit_rl.models.policy import Policy
from lit_rl.options import first_line
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.decoding import DecodingBatch
from lit_rl.types import PromptBatch, Sample

DIFFERENCE = {"full": (1e-3, 1e-5), "half": (0.1, 0.05)}
"""Largest difference from the model's own results, as a share of their size, by precision: of logits, and of shortcuts."""


@torch.no_grad()
def check_policy(policy: Policy) -> None:
    """Compare the policy's logits with the model's own, for two prompts of unequal length and after one more token.

    Shortcuts are tried too, and `Policy.capabilities` set to those that give the same results: prompts held once per group
    while decoding, and packed rows while learning.

    Raises:
        ValueError: if left padding, the cache or the head of this model type work otherwise than expected. Sampler and
            learner would agree with each other, but train another model than the exported one.
    """
    if policy.spec.attention == "flash_attention_2":  # runs on a GPU only, and the model is not there yet
        return
    model = policy.causal_lm
    training, own, model_type = policy.training, model.config._attn_implementation, model.config.model_type
    policy.eval()
    most, _ = _allowed(policy)
    try:
        difference = _difference(_policy_logits(policy), _model_logits(policy))
    except Exception as error:  # any error of the model's own code
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not difference < most:  # NaN is refused too
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: its logits with left padding and a cache, through "
            f"decoder and head, differ from the model's own by {difference:.2g} of their size."
        )
    # The attention function of `lit_rl.kernels` stands in for sdpa; any other function stays in use.
    if own == "sdpa":
        policy.capabilities = _find_capabilities(policy)
    policy.train(training)


def _find_capabilities(policy: Policy) -> Capabilities:
    """Capabilities through `lit_rl.kernels.attention`, which stays in use if plain decoding through it is the model's own."""
    model, found = policy.causal_lm, policy.capabilities
    own = model.config._attn_implementation
    # Results to compare with, while the model still attends in its own way.
    steps, states = _steps(policy, shared=False), _states(policy)
    use_attention(model, NAME)
    with _trying(policy, shares_keys=True):  # `Policy.decode_step` makes its masks by it
        plain, shared = partial(_steps, policy, shared=False), partial(_steps, policy, shared=True)
        if not _agrees(policy, plain, steps):
            use_attention(model, own)
            return found
        shares_keys = _agrees(policy, shared, steps)
    with _trying(policy, packs=True):
        packs = _agrees(policy, partial(_states, policy), states) and _rows_are_apart(policy)
    return replace(found, shares_keys=shares_keys, packs=packs)


@contextmanager
def _trying(policy: Policy, **shortcuts: bool) -> Iterator[None]:
    """Run the policy as if it had the given capabilities."""
    before = policy.capabilities
    policy.capabilities = replace(before, **shortcuts)
    try:
        yield
    finally:
        policy.capabilities = before


def _allowed(policy: Policy) -> tuple[float, float]:
    return DIFFERENCE["full" if _is_precise(policy) else "half"]


def _is_precise(policy: Policy) -> bool:
    return policy.spec.dtype in ("float32", "float64")


def _difference(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _agrees(policy: Policy, compute: Callable[[], Tensor], expected: Tensor) -> bool:
    _, most = _allowed(policy)
    try:
        return _difference(compute(), expected) < most
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):  # a model that attends in its own way
        return False


def _policy_logits(policy: Policy) -> Tensor:
    """(2, 2, V) logits after two prompts, and after one more token of each."""
    prompts, tokens = _two_prompts(policy)
    prompt_logits, cache = policy.prefill(prompts)
    longer = torch.cat([prompts.mask, torch.ones_like(prompts.mask[:, :1])], dim=1)
    token_logits = policy.decode_step(tokens, longer, prompts.mask.sum(1), cache)
    return torch.stack([prompt_logits, token_logits], dim=1)


def _model_logits(policy: Policy) -> Tensor:
    """(2, 2, V) logits of the same places, by the model itself from each row alone."""
    prompts, tokens = _two_prompts(policy)
    rows = [torch.cat([row[keep], token[None]]) for row, keep, token in zip(prompts.ids, prompts.mask, tokens, strict=True)]
    return torch.stack([policy.model(input_ids=row[None]).logits[0, -2:] for row in rows])


def _steps(policy: Policy, shared: bool) -> Tensor:
    """(4, V) logits after two decoding steps of two rows per prompt."""
    prompts, _ = _two_prompts(policy)
    # With a limit of 3 no row is finished by the two tokens.
    batch = DecodingBatch(policy, prompts, group_size=2, limit=3, max_rows=0, shared=shared)
    batch.admit()
    for _ in range(2):
        # Rows get unequal tokens, so that a mix-up of rows shows.
        batch.append(torch.arange(4) % policy.vocabulary, torch.zeros(4, dtype=torch.bool))
        batch.advance()
    return batch.logits


def _rows_are_apart(policy: Policy) -> bool:
    """Whether packed rows feel nothing of each other: a comparison of results would not show it if weights are small.

    In full precision up to rounding, since experts of a mixture take their tokens from all rows together.
    """
    first, other = _states(policy), _states(policy, shift=1)
    same = _difference(other[2:], first[2:]) <= (1e-6 if _is_precise(policy) else 0.0)
    # The changed row itself must differ, or the comparison has tested nothing.
    return same and not torch.equal(first[:2], other[:2])


def _states(policy: Policy, shift: int = 0) -> Tensor:
    """(4, H) hidden states before the tokens of two rows, one on each prompt; ``shift`` changes the first row's tokens."""
    prompts, tokens = _two_prompts(policy)
    prompts.ids[0] = (prompts.ids[0] + shift) % policy.vocabulary
    tokens = torch.stack([tokens[0] + shift, tokens[1]]) % policy.vocabulary
    zeros = torch.zeros(2, 2)
    rows = Rollouts(
        prompts,
        completion_ids=torch.stack([tokens, tokens], dim=1),
        lengths=torch.tensor([2, 2]),
        truncated=torch.zeros(2, dtype=torch.bool),
        logprobs=zeros,
        entropies=zeros,
        temperature=torch.ones(2),
    )
    return policy.hidden_states(rows)


def _two_prompts(policy: Policy) -> tuple[PromptBatch, Tensor]:
    """Two prompts of three and two tokens, and the next token of each (2)."""
    device = next(policy.parameters()).device
    ids = torch.arange(6, device=device).view(2, 3) % policy.vocabulary
    mask = torch.tensor([[True, True, True], [False, True, True]], device=device)
    samples = [Sample("", "", "", number) for number in range(2)]
    return PromptBatch(ids, mask, [[], []], samples), ids[:, 0]
