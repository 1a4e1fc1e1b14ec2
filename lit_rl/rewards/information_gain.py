"""The reward of Reinforcement Learning Pre-training: by how much does a thought make the true continuation likelier?

RLP, arXiv 2510.01265, section 2: r = log p(x | context, thought) - log p_ema(x | context, no thought), where the baseline is an
exponential moving average of the policy. No verifier and no prediction is needed; the truth is `Sample.target`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_rl.rewards.answers import rows_samples
from lit_rl.rewards.base import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.token_bytes import token_bytes
from lit_rl.types import PromptBatch, Sample, TokenBatch

if TYPE_CHECKING:
    from lit_rl.policy_gradient import PolicyGradient

ROWS = 8
"""Sequences of one forward."""


class WeightAverage:
    """An exponential moving average of a model's trainable weights, at least in float32.

    It is no ``nn.Module`` and so stays out of the module's parameters and exports.

    Args:
        decay: share of the average that an update keeps; 1 keeps the weights of the first one, 0 follows the model.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self.step = -1

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights, once per optimizer step: a rollout that is filled up counts once."""
        if step == self.step:
            return
        for name, weight in _trainable(model):
            new = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            old = self.weights.get(name)
            self.weights[name] = new.clone() if old is None else old.to(new).lerp(new, 1 - self.decay)
        self.step = step

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The model with the averages as weights; afterwards it has its own tensors again, even after an exception."""
        own = {name: weight.data for name, weight in _trainable(model)}
        try:
            for name, weight in _trainable(model):
                weight.data = self.weights[name].to(weight)
            yield
        finally:
            for name, weight in _trainable(model):
                weight.data = own[name]


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


class InformationGain(Reward):
    """Log-probability of what really follows after the thought, less that without one: nats per token of the sample's target.

    RLP predicts one token; over several this is the mean of their gains. The thought is the completion up to its last
    ``after`` (to the end of the token in which that ends), or the whole of it with ``after`` behind. Without a thought the
    prompt is followed by ``after`` at once, and the moving average of the policy is asked (`WeightAverage`), which is updated
    once per rollout.

    Args:
        decay: of the average, 0 to 1; 0 is the policy itself, 1 the policy as training began.
        after: what ends a thought.
        lead: text between the thought and the true continuation, such as the opening of a box.
    """

    name = "information_gain"

    def __init__(self, decay: float = 0.999, after: str = "</think>", lead: str = "") -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"reward.decay is {decay}; write 0 (the policy itself) to 1 (as it was when training began).")
        self.after, self.lead, self.average = after, lead, WeightAverage(decay)
        self._pieces: list[bytes] = []
        self._gains: Tensor | None = None  # (N), of the rollouts that were prepared last

    @torch.no_grad()
    def prepare(self, module: PolicyGradient, rollouts: Rollouts) -> None:
        """Update the average, and ask both policies for the true continuations."""
        if module.device_mesh is not None:
            raise ValueError(f"reward {self.name} averages whole weights, and fsdp2 shards them: write trainer.strategy ddp.")
        self.average.update(module.policy, module.trainer.global_step)
        after, lead = (self._tokens(module, option) for option in ("after", "lead"))
        prompts = [ids[keep].tolist() for ids, keep in zip(rollouts.prompts.ids, rollouts.prompts.mask, strict=True)]
        owners = [prompt for prompt in prompts for _ in range(rollouts.group_size)]
        thoughts = self._thoughts(module, rollouts, after)
        rows = [prompt + thought + lead for prompt, thought in zip(owners, thoughts, strict=True)]
        informed = self._truth_logprobs(module, rows, rows_samples(rollouts))
        # Outside the forward context: autocast keeps casts of the weights until it is left.
        with self.average.in_place_of(module.policy):
            baseline = self._truth_logprobs(module, [prompt + after + lead for prompt in prompts], rollouts.prompts.samples)
        self._gains = informed - baseline.repeat_interleave(rollouts.group_size)

    def score(self, rollouts: Rollouts) -> Tensor:
        if self._gains is None or len(self._gains) != len(rollouts):
            raise ValueError("asks the policy and was called without `prepare`; it rewards training and judges no evaluation.")
        return self._gains

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.average.weights, "step": self.average.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.average.weights, self.average.step = dict(state["weights"]), state["step"]

    def _tokens(self, module: PolicyGradient, option: str) -> list[int]:
        text = getattr(self, option)
        try:
            return list(module.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        except Exception as error:  # of tokenizers' own, by its type
            raise ValueError(f"reward.{option} is {text!r}, which the policy's tokenizer cannot write.") from error

    def _thoughts(self, module: PolicyGradient, rollouts: Rollouts, after: list[int]) -> list[list[int]]:
        """Tokens of each row's thought, to the end of it and without the end token."""
        if not self._pieces:
            known = token_bytes(module.tokenizer)
            self._pieces = known + [b""] * (module.policy.vocabulary - len(known))  # heads are padded
        lengths = (rollouts.lengths - (~rollouts.truncated).long()).tolist()
        rows = [row[:length] for row, length in zip(rollouts.completion_ids.tolist(), lengths, strict=True)]
        ends = [thought_end([self._pieces[token] for token in row], self.after.encode()) for row in rows]
        return [row + after if end is None else row[:end] for row, end in zip(rows, ends, strict=True)]

    def _truth_logprobs(self, module: PolicyGradient, prefixes: list[list[int]], samples: list[Sample]) -> Tensor:
        """(n) float32 mean log-probability of the tokens of each sample's target behind its prefix."""
        pad, found = int(module.tokenizer.pad_token_id), []
        for first in range(0, len(samples), ROWS):
            part = samples[first : first + ROWS]
            batch = PromptBatch.pad(prefixes[first : first + ROWS], [list(sample.target) for sample in part], part, pad)
            rows = TokenBatch.from_prompts(batch, pad, completion_only=True).to(module.device)
            self._check(module, rows, part)
            with module.forward_context():
                logprobs = module.policy.score_batch(rows).logprobs  # (n, S), 0 but at targets
            found.append(logprobs.float().sum(1) / rows.target.sum(1))
        return torch.cat(found).cpu()

    def _check(self, module: PolicyGradient, rows: TokenBatch, samples: list[Sample]) -> None:
        for sample, length in zip(samples, rows.lengths.tolist(), strict=True):
            if not sample.target:
                raise ValueError(f"sample {sample.number} has no target for {self.name}; set `positions` of the data.")
            if module.policy.context is not None and length > module.policy.context:
                raise ValueError(
                    f"sample {sample.number} has {length} tokens with thought and target, more than the model's "
                    f"{module.policy.context} positions; write a smaller sampler.max_new_tokens."
                )


def thought_end(pieces: Sequence[bytes], after: bytes) -> int | None:
    """How many tokens reach to the end of the last ``after``, None where it does not occur."""
    place = b"".join(pieces).rfind(after)
    ends = list(accumulate(len(piece) for piece in pieces))
    return None if place < 0 else bisect_left(ends, place + len(after)) + 1
