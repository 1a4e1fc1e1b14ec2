"""Lengths of prompts before the first step: a prompt that is too long is refused, left out or cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from rich.progress import Progress
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lit_rl.models.loading import position_limit
from lit_rl.models.spec import PolicySpec
from lit_rl.text.encoding import bos, check_prompt
from lit_rl.types import Sample

from .collate import collate, tokenize
from .positions import Positions, WindowSamples

Overlong = Literal["refuse", "drop", "cut"]
"""Treatment of a prompt that is longer than ``data.max_prompt_tokens``."""
BATCH = 1024
"""Samples that are tokenized at a time."""
SHOWN = 20_000
"""Samples from which on progress is shown."""

Samples = Sequence[Sample] | Dataset[Sample]


def token_counts(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """(n, 2) tokens of the prompt and of the completion of each sample.

    Raises:
        ValueError: if a prompt has no tokens.
    """
    if isinstance(samples, Positions | WindowSamples):
        return samples.token_counts()
    counts, size = [], len(samples)  # type: ignore[arg-type]
    with Progress(transient=True, disable=size < SHOWN) as progress:
        bar = progress.add_task("Lengths of prompts", total=size)
        for start in range(0, size, BATCH):
            some = [samples[place] for place in range(start, min(start + BATCH, size))]
            for sample, (prompt, completion) in zip(some, tokenize(tokenizer, some), strict=True):
                check_prompt(sample.number, prompt)
                counts.append((len(prompt), len(completion)))
            progress.update(bar, completed=start + len(some))
    return np.array(counts, dtype=np.int64).reshape(-1, 2)


def limit_prompts(name: str, samples: Samples, tokenizer: PreTrainedTokenizerBase, limit: int, overlong: Overlong) -> Samples:
    """Samples whose prompts have at most ``limit`` tokens; the count of longer ones is printed.

    Args:
        name: name of the set, for messages.
        samples: whole samples.
        tokenizer: the policy's tokenizer.
        limit: most tokens of a prompt.
        overlong: treatment of longer prompts; ``cut`` keeps the end of a prompt, and BOS.

    Raises:
        ValueError: for a longer prompt with ``refuse``, or if no sample is left.
    """
    counts = token_counts(samples, tokenizer)[:, 0]
    if not (counts > limit).any():
        return samples
    longest = int(counts.argmax())
    found = f"sample {samples[longest].number} of data.{name} has a prompt of {counts[longest]} tokens"
    if overlong == "refuse":
        raise ValueError(
            f"{found}, more than data.max_prompt_tokens {limit}; raise it, or write data.overlong drop or cut "
            f"({(counts > limit).sum():,} of {len(counts):,} prompts are longer)."
        )
    kept = [
        samples[place] if count <= limit else _cut(samples[place], tokenizer, limit)
        for place, count in enumerate(counts.tolist())
        if count <= limit or overlong == "cut"
    ]
    done = "left out" if overlong == "drop" else "cut to their ends"
    longer = f"{(counts > limit).sum():,} of {len(counts):,} prompts have more than {limit} tokens"
    rank_zero_info(f"data.{name}: {longer} and are {done}; {found}")
    if not kept:
        raise ValueError(
            f"data.max_prompt_tokens {limit} leaves no sample of data.{name}; raise it, or write data.overlong cut."
        )
    return kept


def check_fit(name: str, samples: Samples, module: Any, training: bool) -> None:
    """Refuse a longest prompt that does not fit into the model's positions with all that follows it.

    Args:
        name: name of the set, for messages.
        samples: whole samples, positions or windows.
        module: the `PolicyModule`, which says what follows.
        training: whether the samples are trained on, or evaluated.
    """
    positions, new = model_positions(module.policy_spec), module.new_tokens(training)
    if positions is None or not len(samples):  # type: ignore[arg-type]
        return
    prompts, completions = token_counts(samples, module.tokenizer).T
    # Without sampling it is the true completion that follows.
    longest = int((prompts + (0 if new else completions)).argmax())
    sample = samples[longest]
    # As the policy is shown it: a template may add to the prompt.
    shown = int(module.renderer.render(collate(module.tokenizer, [sample])).mask.sum())
    after = new or int(completions[longest])
    if shown + after > positions:
        option = f"model.{'sampler' if training else 'evaluation'}.max_new_tokens"
        what = f"new ones ({option})" if new else "of its completion"
        remedy = (
            "write a smaller model.max_context or data.window"
            if isinstance(samples, Positions | WindowSamples)
            else f"write data.max_prompt_tokens {max(1, positions - after)} with data.overlong drop or cut"
        )
        raise ValueError(
            f"sample {sample.number} of data.{name} has a prompt of {shown} tokens, and with {after} {what} more than the "
            f"model's {positions} positions; {remedy}{', or fewer new tokens' if new else ''}."
        )


def model_positions(spec: PolicySpec) -> int | None:
    """Positions of the model that is loaded later, if its config says so."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(spec.pretrained) if spec.pretrained else AutoConfig.for_model(**(spec.config or {}))
    except (OSError, ValueError, TypeError):  # loading the model explains it better
        return None
    return position_limit(config)


def _cut(sample: Sample, tokenizer: PreTrainedTokenizerBase, limit: int) -> Sample:
    """A sample with the last tokens of its prompt, after BOS if the prompt begins with it."""
    [(prompt, completion)] = tokenize(tokenizer, [sample])
    opening = bos(tokenizer) if prompt[:1] == bos(tokenizer) else []
    ids = opening + prompt[len(prompt) - max(1, limit - len(opening)) :]
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    # As token ids: the text that is left might give others.
    return sample._replace(prompt=text, context=ids, target=completion)
