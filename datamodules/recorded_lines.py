"""Lines of recorded rollouts, read back as `Rollouts`; `lit_rl.training.recording` writes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_rl.rollouts import Rollouts
from lit_rl.support import Support
from lit_rl.types import PromptBatch, Sample

from .jsonl import field

NUMBER = (int, float)


@dataclass(frozen=True)
class Recording:
    """A question with its recorded completions."""

    sample: Sample
    """The question, with its first prompt as token ids."""
    rollouts: Rollouts
    """The completions with their recorded rewards, each a group of its own."""
    policy: str
    """Name of the policy that sampled."""
    weights: str
    """Fingerprint of its weights."""
    tokenizer: str
    """Fingerprint of its vocabulary."""
    max_new_tokens: int
    """Limit of the completions in tokens."""

    @property
    def longest(self) -> int:
        """Tokens of the longest completion and its prompt."""
        prompts = self.rollouts.prompts.mask.sum(1)  # (P)
        return int((prompts[self.rollouts.prompt] + self.rollouts.lengths).max())

    @property
    def digest(self) -> bytes:
        """Hash of tokens, log-probabilities and rewards."""
        rollouts, found = self.rollouts, hashlib.sha256()
        for values in (rollouts.prompts.ids, rollouts.completion_ids, rollouts.logprobs, rollouts.rewards):
            found.update(values.numpy().tobytes())
        return found.digest()

    def best_answers(self, count: int, min_reward: float | None) -> list[Sample]:
        """The question with each of its best finished completions as the true one, the highest reward first.

        Args:
            count: most completions; equal ones count once.
            min_reward: smallest reward of a completion; None for no limit.
        """
        rollouts, taken = self.rollouts, dict[tuple[int, ...], Sample]()
        for row in rollouts.rewards.argsort(descending=True, stable=True).tolist():
            low = min_reward is not None and float(rollouts.rewards[row]) < min_reward
            # A completion that was cut off would teach to stop anywhere.
            if low or not rollouts.scored[row] or rollouts.truncated[row]:
                continue
            prompt = int(rollouts.prompt[row])
            context = tuple(rollouts.prompts.ids[prompt][rollouts.prompts.mask[prompt]].tolist())
            target = tuple(rollouts.completion_ids[row, : int(rollouts.lengths[row])].tolist())
            sample = self.sample._replace(context=context, target=target, completion=rollouts.texts[row])
            taken.setdefault(target, sample._replace(prompt=rollouts.prompts.samples[prompt].prompt))
        return list(taken.values())[:count]


def read_recording(row: Any, pad_id: int) -> Recording:
    """Read the entry of a question.

    Args:
        row: content of the line.
        pad_id: token id that fills prompts up.

    Raises:
        ValueError: if the row is malformed.
    """
    run, outputs, prompts = field(row, "run", dict), _list(row, "arm_outputs", dict), _list(row, "prompts", dict)
    question, reference = field(row, "question", str), field(row, "gold_answer", str)
    contexts = [_list(prompt, "token_ids", int) for prompt in prompts]
    samples = [
        Sample(field(prompt, "text", str), "", reference, field(row, "number", int), context, question=question)
        for prompt, context in zip(prompts, contexts, strict=True)
    ]
    batch = PromptBatch.pad(contexts, [[] for _ in contexts], samples, pad_id)
    return Recording(
        samples[0],
        _rollouts(outputs, batch),
        field(run, "policy", str),
        field(run, "weights", str),
        field(run, "tokenizer", str),
        field(field(run, "sampling", dict), "max_new_tokens", int),
    )


def _rollouts(outputs: list[Any], prompts: PromptBatch) -> Rollouts:
    """Completions of a question's prompts, each a group of its own."""
    ids = [_list(output, "token_ids", int) for output in outputs]
    owners = [field(output, "prompt", int) for output in outputs]
    if not all(0 <= owner < len(prompts) for owner in owners):
        raise ValueError(f"field 'prompt' of an output is {max(owners)}, and there are {len(prompts)} prompts, numbered from 0")
    tables = {}
    for name in ("logprobs", "entropies"):
        values = [_list(output, name, NUMBER) for output in outputs]
        if [len(each) for each in values] != [len(each) for each in ids]:
            raise ValueError(f"an output has another number of {name!r} than of 'token_ids'")
        tables[name] = _table(values, torch.float32)
        if not tables[name].isfinite().all():
            raise ValueError(f"field {name!r} of an output holds a number that is not finite")
    rewards = [output.get("reward") for output in outputs]
    scored = torch.tensor([reward is not None for reward in rewards])
    parts = [field(output, "parts", dict) for output in outputs]
    return Rollouts(
        prompts,
        texts=[field(output, "full_text", str) for output in outputs],
        support=_support(outputs, ids),
        parts={name: _column([part.get(name, 0.0) for part in parts]) for name in sorted(parts[0])},
        completion_ids=_table(ids, torch.long),
        lengths=torch.tensor([len(each) for each in ids]),
        truncated=torch.tensor([bool(output.get("truncated")) for output in outputs]),
        stopped=torch.tensor([bool(output.get("stopped")) for output in outputs]),
        temperature=_column([field(output, "temperature", NUMBER) for output in outputs]),
        prompt=torch.tensor(owners),
        group=torch.arange(len(outputs)),
        rewards=_column(
            [field(output, "reward", NUMBER) if known else 0.0 for output, known in zip(outputs, scored.tolist(), strict=True)]
        ),
        scored=scored,
        in_loss=scored.clone(),
        **tables,
    )


def _support(outputs: list[Any], ids: list[list[int]]) -> Support | None:
    """Tokens that top-k and top-p left; None if the rollouts were recorded without them."""
    if not any("kept" in output for output in outputs):
        return None
    kept = [_list(output, "kept", list) for output in outputs]  # for each row and each token a list of ids
    if [len(row) for row in kept] != [len(row) for row in ids]:
        raise ValueError("an output has another number of 'kept' than of 'token_ids'")
    counts = _table([[len(token) for token in row] for row in kept], torch.int32)
    return Support(torch.tensor([each for row in kept for token in row for each in token], dtype=torch.int32), counts)


def _list(row: Any, name: str, kind: Any) -> list[Any]:
    """A list of values of one type, at least one."""
    found = field(row, name, list)
    if not found:
        raise ValueError(f"field {name!r} is an empty list")
    if not all(isinstance(value, kind) for value in found):
        raise ValueError(f"field {name!r} holds {next(value for value in found if not isinstance(value, kind))!r}")
    return found


def _table(rows: list[list[Any]], dtype: torch.dtype) -> Tensor:
    """(N, T) from lists of several lengths, 0 after a row's end."""
    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True)


def _column(values: list[float]) -> Tensor:
    """(N) float32."""
    return torch.tensor(values, dtype=torch.float32)
