"""Comparison of an export with the policy: transformers or peft opens the folder from disk, as any user would.

The policy is asked for log-probabilities (and values) of a few tokens, the reopened model for the same on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from lit_rl.kernels.fused_head import without_missing
from lit_rl.models.adapters import is_adapter, open_base
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.policy import Policy
from lit_rl.models.spec import PolicySpec
from lit_rl.models.value_head import ValueHead, load_value_head
from lit_rl.options import first_line
from lit_rl.randomness import generator_state, set_generator_state
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch, Sample

PROMPT, COMPLETION = 8, 24
"""Tokens that the policy is asked about."""

TOLERANCE = {"full": 1e-3, "half": 0.3}
"""Mean difference per token, in nats, up to which an export is the policy, by the precision of the policy's products.

Unlikely tokens have log-probabilities about -15, which bfloat16 rounds to sixteenths; so two exact passes may differ by 0.1.
"""


class Probe(NamedTuple):
    """Log-probabilities of a few tokens under a policy, on the CPU."""

    ids: Tensor
    """(L + T) token ids."""
    logprobs: Tensor
    """(T) of the last T tokens."""
    values: Tensor | None
    """(T) of the value head; None without one."""
    missing: Tensor | None
    """Ids without a token, which the policy leaves out."""
    dtype: torch.dtype
    """Precision of the policy's weights."""


@torch.no_grad()
def probe_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> Probe:
    """Ask the policy as the learner does, in eval mode; every rank must call if weights are sharded."""
    weight = next(policy.parameters())
    ids = probe_ids(tokenizer, policy.vocabulary, policy.context)
    rows = _rollouts(ids.to(weight.device))
    with _evaluating(policy):
        if policy.value_head is None:
            scores, values = policy.score(rows, details=False), None
        else:
            scores, values = policy.score_with_values(rows, False, False)
    missing = None if policy.missing is None else policy.missing.cpu()
    return Probe(ids, scores.logprobs[0].cpu(), None if values is None else values[0].cpu(), missing, weight.dtype)


def check_reopened(folder: Path, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> None:
    """Open an export and compare it with the policy.

    Raises:
        ValueError: if it cannot be opened, or model, value head or tokenizer are not the policy's.
    """
    if not probe.logprobs.isfinite().all():
        raise ValueError("the policy's log-probabilities are not finite numbers, so it is not exported.")
    before = generator_state()  # peft draws initial weights before it reads an adapter's own
    try:
        with no_bars():
            found, values = _ask(folder, probe)
            again = load_tokenizer(PolicySpec(pretrained=str(folder)))
    except Exception as error:  # any error of the libraries' own code
        raise ValueError(f"the export cannot be opened again: {type(error).__name__}: {first_line(error)}") from error
    finally:
        set_generator_state(before)
    _refuse_difference("log-probabilities", "nats a token", found, probe.logprobs, probe.dtype)
    if probe.values is not None and values is not None:
        # Values have the unit of rewards, so the bound grows with them.
        scale = probe.values.abs().max().clamp(min=1.0)
        _refuse_difference("values", "of their size", values / scale, probe.values / scale, probe.dtype)
    _check_tokenizer(again, tokenizer, probe.ids)


def _refuse_difference(kind: str, unit: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    difference = float((found - expected).abs().mean())
    # A GPU may be allowed to round the factors of float32 products (TF32); the comparison itself runs on the CPU.
    full = dtype == torch.float64 or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest")
    if not difference <= TOLERANCE["full" if full else "half"]:  # NaN is refused too
        raise ValueError(
            f"the export, opened again, is not the policy: its {kind} differ by {difference:.2g} {unit}; nothing was replaced. "
            "LoRA on embeddings or head of a model with tied weights cannot be merged; leave them out of lora.target_modules."
        )


def _check_tokenizer(found: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, ids: Tensor) -> None:
    text = own.decode(ids)
    if len(found) != len(own) or found.decode(ids) != text or found(text)["input_ids"] != own(text)["input_ids"]:
        raise ValueError(
            "the export, opened again, has another tokenizer than the policy: text and ids of its tokens differ; "
            "nothing was replaced."
        )


def _ask(folder: Path, probe: Probe) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (T) and values (T) of the probe's tokens under an export, by transformers' own eager forward."""
    model = _open(folder, probe.dtype)
    causal_lm = model.get_base_model() if is_adapter(str(folder)) else model
    logprobs = last_logprobs(model, probe.ids, len(probe.logprobs), probe.missing)
    with torch.no_grad():
        steps = slice(-len(probe.logprobs) - 1, -1)  # tokens before the ones that are predicted
        if probe.values is None:
            return logprobs, None
        hidden = causal_lm.get_decoder()(input_ids=probe.ids[None]).last_hidden_state[0, steps]  # (T, H)
        head = ValueHead(hidden.shape[1], probe.values.dtype)
        load_value_head(head, str(folder))
        return logprobs, head(hidden)


@torch.no_grad()
def last_logprobs(model: Any, ids: Tensor, count: int, missing: Tensor | None) -> Tensor:
    """(T) log-probabilities of the last tokens of a text, by transformers' own forward.

    Args:
        model: model of transformers or peft, in eval mode.
        ids: (S) the text.
        count: T.
        missing: ids without a token, which are left out.
    """
    logits = without_missing(model(input_ids=ids[None]).logits[0, -count - 1 : -1], missing)  # (T, V)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return wide.gather(1, ids[-count:, None])[:, 0]


def _open(folder: Path, dtype: torch.dtype) -> Any:
    """The exported model in eval mode; its files say the precision of a whole model, and an adapter's is its policy's."""
    if not is_adapter(str(folder)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")
        if model.dtype != dtype:
            raise ValueError(f"its weights are {model.dtype}, and the policy's {dtype}")
        return model.eval()
    from peft import PeftModel

    base = open_base(str(folder), dtype=dtype, attn_implementation="eager")
    return PeftModel.from_pretrained(base, str(folder)).eval()


def probe_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int, context: int | None) -> Tensor:
    """(S) ids of tokens from all over the vocabulary, as many as fit into the model's positions.

    Args:
        tokenizer: the model's tokenizer.
        vocabulary: rows of the model's head.
        context: the model's positions; None for no limit.
    """
    known = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
    known = known[known < vocabulary]
    size = min(PROMPT + COMPLETION, context or PROMPT + COMPLETION)
    return known[torch.linspace(0, len(known) - 1, size).long()]


def _rollouts(ids: Tensor) -> Rollouts:
    """One row: the first tokens as the prompt and the others as its completion."""
    cut = len(ids) * PROMPT // (PROMPT + COMPLETION)
    prompt, completion = ids[None, :cut], ids[None, cut:]
    zeros = torch.zeros(completion.shape, device=ids.device)
    return Rollouts(
        PromptBatch(prompt, torch.ones_like(prompt, dtype=torch.bool), [[]], [Sample("", "", "", 0)]),
        completion_ids=completion,
        lengths=torch.tensor([completion.shape[1]], device=ids.device),
        truncated=torch.zeros(1, dtype=torch.bool, device=ids.device),
        logprobs=zeros,
        entropies=zeros,
        temperature=torch.ones(1, device=ids.device),
    )


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Run the policy without dropout and uncompiled; each module's own mode comes back."""
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        # For these lengths alone layers would be compiled anew.
        with torch.compiler.set_stance("force_eager") if policy.compiled else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def no_bars() -> Iterator[None]:
    """Open and save models without transformers' progress bars: exports happen in the middle of a run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
