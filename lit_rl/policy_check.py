"""Does this model type do what a policy needs? Asked once, before anything is trained on a wrong answer."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rl.policy import Policy
from lit_rl.sampling.batch import DecodingBatch
from lit_rl.types import PromptBatch, Sample


@torch.no_grad()
def check_policy(policy: Policy) -> None:
    """Compare the policy's logits with the model's own, for two rows of unequal length and after one more token.

    Raises:
        ValueError: where left padding, the cache or the head of this model type work otherwise than expected. Sampler and
            learner would agree with each other, and train another model than the one that is exported.
    """
    model_type = policy.causal_lm.config.model_type
    training = policy.training
    policy.eval()
    exact = 1e-3 if policy.spec.dtype in ("float32", "float64") else 0.1
    try:
        off = _largest_difference(policy)
        policy.shares_keys = _shares_keys(policy, exact)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: {type(error).__name__}: {reason}"
        ) from error
    policy.train(training)
    if not off < exact:
        raise ValueError(
            f"model_type {model_type!r} cannot be a policy as configured: its logits with left padding and a cache, through "
            f"decoder and head, differ from the model's own by {off:.2g} of their size."
        )


def _largest_difference(policy: Policy) -> float:
    prompts, tokens = _two_prompts(policy)
    prompt_logits, cache = policy.prefill(prompts)
    longer = torch.cat([prompts.mask, torch.ones_like(prompts.mask[:, :1])], dim=1)
    token_logits = policy.decode(tokens, longer, prompts.mask.sum(1), cache)
    own = torch.stack([prompt_logits, token_logits], dim=1)  # (2, 2, V)
    rows = [torch.cat([row[keep], token[None]]) for row, keep, token in zip(prompts.ids, prompts.mask, tokens, strict=True)]
    model: Tensor = torch.stack([policy.model(input_ids=row[None]).logits[0, -2:] for row in rows])
    return float((own - model).abs().max() / model.abs().max().clamp(min=1e-6))


def _shares_keys(policy: Policy, exact: float) -> bool:
    """Whether two tokens on shared prompts (`lit_rl.sampling.shared_prompts`) have the logits that they have without."""
    if policy.causal_lm.config._attn_implementation != "sdpa":
        return False
    logits = []
    for shared in (False, True):
        prompts, _ = _two_prompts(policy)
        batch = DecodingBatch(policy, prompts, group_size=2, limit=3, max_rows=0, shared=shared)
        batch.admit()
        try:
            for _ in range(2):
                batch.take(torch.arange(4) % policy.vocabulary, torch.zeros(4, dtype=torch.bool))
                batch.advance()
        except (AttributeError, TypeError, RuntimeError):  # a model that handles the keys before it attends
            return False
        logits.append(batch.logits)
    difference = (logits[0] - logits[1]).abs().max() / logits[0].abs().max().clamp(min=1e-6)
    return bool(difference < exact)


def _two_prompts(policy: Policy) -> tuple[PromptBatch, Tensor]:
    """Two prompts of three and two tokens, and the next token of each."""
    device = next(policy.parameters()).device
    ids = torch.arange(6, device=device).view(2, 3) % policy.vocabulary
    mask = torch.tensor([[True, True, True], [False, True, True]], device=device)
    samples = [Sample("", "", "", number) for number in range(2)]
    return PromptBatch(ids, mask, [[], []], samples), ids[:, 0]
