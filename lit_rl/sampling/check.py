"""Check of a model at the start: its results are transformers' own, or it is refused; exact shortcuts are found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_rl.kernels.attention import NAME, use_attention
from lit_rl.models.capabilities import Capabilities
from lit_rl.models.miniature import miniature
from lit_rl.models.policy import Policy
from lit_rl.options import first_line
from lit_rl.sampling.comparison import Comparison, Rows

EXACT = 1e-3
"""Largest difference of log-probabilities, in nats, up to which results in full precision are the same."""
HALF = 0.2
"""The same for bfloat16 and float16, whose rounding differs by that much on average."""

LONG_ROWS = Rows([18, 5], [6, 3, 4, 6])
"""Rows of the miniature: longer than its windows, and with a short prompt beside a long one."""
SHORT_ROWS = Rows([5, 2], [3, 3])
"""Rows of the policy itself."""


def check_policy(policy: Policy) -> None:
    """Compare the policy's ways of reading rows with transformers' eager attention on single rows, and set its capabilities.

    The sampler's way has left padding and a cache, the learner's is packed, with shared prompts, or whole rows. They are
    compared on a miniature of the policy, whose rows are longer than its windows, and then on the policy itself.

    Raises:
        ValueError: if no attention implementation that the config allows gives the model's own results. Sampler and learner
            would agree with each other, but train another model than the exported one.
    """
    if any(getattr(module, "router_jitter_noise", 0) for module in policy.modules()):
        raise ValueError(_refusal(policy, "its router draws experts at random in train mode (router_jitter_noise)."))
    training, own = policy.training, policy.causal_lm.config._attn_implementation
    policy.eval()
    try:
        comparisons = _comparisons(policy)
    except Exception as error:  # any error of the model's own code
        raise ValueError(_refusal(policy, f"{type(error).__name__}: {first_line(error)}")) from error
    for attention in _candidates(policy.spec.attention, own):
        for comparison in comparisons:
            use_attention(comparison.policy.causal_lm, attention)
        if (found := _capabilities(comparisons, policy.capabilities, attention)) is not None:
            break
    else:
        raise ValueError(_refusal(policy, _complaint(policy, comparisons, own)))
    if attention == "eager" != own:
        rank_zero_info(f"model_type {policy.causal_lm.config.model_type!r}: {own} differs from eager attention, which is used.")
    policy.capabilities = found
    policy.train(training)


def _candidates(asked: str | None, own: str) -> list[str]:
    """Attention implementations to try, the fastest first; the attention of `lit_rl.kernels` stands in for sdpa."""
    if own != "sdpa":
        return [own]
    return [NAME, own] if asked else [NAME, own, "eager"]


def _comparisons(policy: Policy) -> list[Comparison]:
    """Comparisons to pass, the quickest first; attention on GPUs alone has the miniature's."""
    own = policy.causal_lm.config._attn_implementation
    flash = "flash" in own
    if flash and not torch.cuda.is_available():
        rank_zero_info(f"model.policy.attention: {own} runs on a GPU only, and there is none: the model was not checked.")
        return []
    dtype = torch.bfloat16 if flash else torch.float32
    reference, small = (miniature(policy, attention, dtype) for attention in ("eager", own))
    found = []
    if reference is not None and small is not None:
        device = "cuda" if flash else next(policy.parameters()).device
        small.model.load_state_dict(reference.model.state_dict())
        small.disable_dropout()
        with suppress(Exception):  # the model's own code may refuse what is short; the policy itself is compared all the same
            found.append(Comparison(small.to(device), LONG_ROWS, reference.to(device), gradient=not flash))
    return found if flash else [*found, Comparison(policy, SHORT_ROWS)]


def _capabilities(comparisons: list[Comparison], declared: Capabilities, attention: str) -> Capabilities | None:
    """The quickest ways of sampler and learner that give the model's own results; None if there are none."""
    # Only a miniature's weights are sure to show that rows or windows are mixed up.
    tried = attention == NAME and any(comparison.gradient for comparison in comparisons)
    plain = replace(declared, shares_keys=False, packs=False)
    keys = [plain, replace(plain, shares_keys=True)][:: -1 if tried else 1]
    sampler = next((each for each in (keys if tried else keys[:1]) if _agree(comparisons, each, _sampler_difference)), None)
    ways = [replace(plain, packs=True)] if tried else []
    ways += [plain, replace(plain, shares_prompts=False)] if plain.shares_prompts else [plain]
    learner = next((each for each in ways if _agree(comparisons, each, _learner_difference)), None)
    return sampler and learner and replace(learner, shares_keys=sampler.shares_keys)


def _agree(
    comparisons: list[Comparison], capabilities: Capabilities, difference: Callable[[Comparison, Capabilities], float]
) -> bool:
    return all(_passes(comparison, capabilities, difference) for comparison in comparisons)


def _passes(
    comparison: Comparison, capabilities: Capabilities, difference: Callable[[Comparison, Capabilities], float]
) -> bool:
    try:
        # NaN does not pass.
        return _with(comparison, capabilities, difference) < (EXACT if comparison.precise else HALF)
    except Exception:  # any error of the model's own code
        return False


def _with(comparison: Comparison, capabilities: Capabilities, difference: Callable[[Comparison, Capabilities], float]) -> float:
    """The difference, as if the policy had these capabilities."""
    before = comparison.policy.capabilities
    comparison.policy.capabilities = capabilities
    try:
        return difference(comparison, capabilities)
    finally:
        comparison.policy.capabilities = before


def _sampler_difference(comparison: Comparison, capabilities: Capabilities) -> float:
    # Short prompts are repeated for their rows even if longer ones are shared.
    shared = comparison.sampler(shared=capabilities.shares_keys)
    return max(shared, comparison.sampler(shared=False)) if comparison.gradient and capabilities.shares_keys else shared


def _learner_difference(comparison: Comparison, capabilities: Capabilities) -> float:
    rollouts = comparison.learner()
    return max(rollouts, comparison.learner(sequences=True)) if comparison.gradient else rollouts


def _complaint(policy: Policy, comparisons: list[Comparison], own: str) -> str:
    """Describe the difference under the model's own attention, and name the option that would work."""
    for comparison in comparisons:
        use_attention(comparison.policy.causal_lm, own)
    found = next(
        filter(None, (_fault(comparison) for comparison in comparisons)), "no way to learn gives the model's own results"
    )
    for comparison in comparisons:
        use_attention(comparison.policy.causal_lm, "eager")
    works = own != "eager" and _capabilities(comparisons, policy.capabilities, "eager") is not None
    return f"{found}; write model.policy.attention: eager." if works else f"{found}."


def _fault(comparison: Comparison) -> str | None:
    """Describe the first difference without shortcuts; None if all results agree."""
    whole = replace(comparison.policy.capabilities, shares_keys=False, packs=False, shares_prompts=False)
    for name, difference in (("sampler", _sampler_difference), ("learner", _learner_difference)):
        try:
            value = _with(comparison, whole, difference)
        except Exception as error:  # any error of the model's own code
            return f"{type(error).__name__}: {first_line(error)}"
        if not value < (EXACT if comparison.precise else HALF):
            return f"log-probabilities of the {name} differ by {value:.2g} nats from transformers' eager ones on whole rows"
    return None


def _refusal(policy: Policy, complaint: str) -> str:
    return f"model_type {policy.causal_lm.config.model_type!r} cannot be a policy as configured: {complaint}"
