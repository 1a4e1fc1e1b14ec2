"""Does this model type do what a policy needs? Asked once, before anything is trained on a wrong answer."""

from __future__ import annotations

from collections.abc import Callable
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


@torch.no_grad()
def check_policy(policy: Policy) -> None:
    """Compare the policy's logits with the model's own, for two rows of unequal length and after one more token.

    What makes it faster is tried too, and used where it gives the same: prompts held once per group while decoding, and
    packed rows while learning.

    Raises:
        ValueError: where left padding, the cache or the head of this model type work otherwise than expected. Sampler and
            learner would agree with each other, and train another model than the one that is exported.
    """
    if policy.spec.attention == "flash_attention_2":  # runs on a GPU only, where the model is not yet
        return
    model = policy.causal_lm
    model_type = model.config.model_type
    training, own = policy.training, model.config._attn_implementation
    policy.eval()
    precise = policy.spec.dtype in ("float32", "float64")
    exact, same = (1e-3, 1e-5) if precise else (0.1, 0.05)
    try:
        off = _difference(_policy_logits(policy), _model_logits(policy))
    except Exception as error:
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not off < exact:
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: its logits with left padding and a cache, through "
            f"decoder and head, differ from the model's own by {off:.2g} of their size."
        )
    if own == "sdpa":
        policy.capabilities = _find_capabilities(policy, same, precise)
    policy.train(training)


def _find_capabilities(policy: Policy, same: float, precise: bool) -> Capabilities:
    """Shortcuts through `lit_rl.kernels.attention` that give the model's own results; without any, the model's own attention."""
    model, before = policy.causal_lm, policy.capabilities
    own = model.config._attn_implementation
    expected_steps, expected_states = _steps(policy, shared=False), _states(policy, packed=False)
    use_attention(model, NAME)
    policy.capabilities = replace(before, shares_keys=True)  # `Policy.decode` makes its masks by it
    if not _agrees(partial(_steps, policy, False), expected_steps, same):  # even plain decoding through our function differs
        use_attention(model, own)
        return before
    shares_keys = _agrees(partial(_steps, policy, True), expected_steps, same)
    policy.capabilities = replace(before, shares_keys=shares_keys)
    packs = _agrees(partial(_states, policy, True), expected_states, same) and _rows_are_apart(policy, precise)
    return replace(before, shares_keys=shares_keys, packs=packs)


def _difference(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _agrees(compute: Callable[[], Tensor], expected: Tensor, same: float) -> bool:
    try:
        return _difference(compute(), expected) < same
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):  # a model that attends in its own way
        return False


def _policy_logits(policy: Policy) -> Tensor:
    """(2, 2, V): after two prompts, and after one more token."""
    prompts, tokens = _two_prompts(policy)
    prompt_logits, cache = policy.prefill(prompts)
    longer = torch.cat([prompts.mask, torch.ones_like(prompts.mask[:, :1])], dim=1)
    token_logits = policy.decode(tokens, longer, prompts.mask.sum(1), cache)
    return torch.stack([prompt_logits, token_logits], dim=1)


def _model_logits(policy: Policy) -> Tensor:
    prompts, tokens = _two_prompts(policy)
    rows = [torch.cat([row[keep], token[None]]) for row, keep, token in zip(prompts.ids, prompts.mask, tokens, strict=True)]
    return torch.stack([policy.model(input_ids=row[None]).logits[0, -2:] for row in rows])


def _steps(policy: Policy, shared: bool) -> Tensor:
    """(4, V): logits after two decoding steps of two rows a prompt."""
    prompts, _ = _two_prompts(policy)
    batch = DecodingBatch(policy, prompts, group_size=2, limit=3, max_rows=0, shared=shared)
    batch.admit()
    for _ in range(2):
        batch.take(torch.arange(4) % policy.vocabulary, torch.zeros(4, dtype=torch.bool))
        batch.advance()
    return batch.logits


def _rows_are_apart(policy: Policy, precise: bool) -> bool:
    """Whether packed rows feel nothing of each other: small weights would hide it from a comparison.

    In full precision up to rounding, since experts of a mixture take their tokens from all rows together.
    """
    first, other = _states(policy, packed=True), _states(policy, packed=True, shift=1)
    return _difference(other[2:], first[2:]) <= (1e-6 if precise else 0.0) and not torch.equal(first[:2], other[:2])


def _states(policy: Policy, packed: bool, shift: int = 0) -> Tensor:
    """(4, H): hidden states before the tokens of two rows, one on each prompt; ``shift`` changes the first one's tokens."""
    prompts, tokens = _two_prompts(policy)
    prompts.ids[0] = (prompts.ids[0] + shift) % policy.vocabulary
    tokens = torch.stack([tokens[0] + shift, tokens[1]]) % policy.vocabulary
    completions, lengths = torch.stack([tokens, tokens], dim=1), torch.tensor([2, 2])
    floats = torch.zeros(2, 2)
    flags = torch.zeros(2, dtype=torch.bool)
    rows = Rollouts(
        prompts,
        completion_ids=completions,
        lengths=lengths,
        truncated=flags,
        logprobs=floats,
        entropies=floats,
        temperature=floats[0] + 1,
    )
    return policy.hidden_states(rows, packed)


def _two_prompts(policy: Policy) -> tuple[PromptBatch, Tensor]:
    """Two prompts of three and two tokens, and the next token of each."""
    device = next(policy.parameters()).device
    ids = torch.arange(6, device=device).view(2, 3) % policy.vocabulary
    mask = torch.tensor([[True, True, True], [False, True, True]], device=device)
    samples = [Sample("", "", "", number) for number in range(2)]
    return PromptBatch(ids, mask, [[], []], samples), ids[:, 0]
