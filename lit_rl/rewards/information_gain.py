"""The reward of Reinforcement Learning Pre-training: by how much does a thought make the true continuation likelier?

RLP, arXiv 2510.01265, section 2: r = log p(x | context, thought) - log p_ema(x | context, no thought), where the baseline is an
exponential moving average of the policy. No verifier and no prediction is needed; the truth is `Sample.target`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lit_rl.models.ema import WeightAverage
from lit_rl.rewards.base import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.text.token_bytes import token_bytes
from lit_rl.types import PromptBatch, Sample, TokenBatch

ROWS_PER_FORWARD = 8
"""Sequences of one forward."""


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
    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        """Update the average, and ask both policies for the true continuations."""
        if actor.runtime.sharded:
            raise ValueError(f"reward {self.name} averages whole weights, and fsdp2 shards them: write trainer.strategy ddp.")
        self.average.update(actor.policy, actor.runtime.step)
        after, lead = (self._tokens(actor, option) for option in ("after", "lead"))
        prompts = [ids[keep].tolist() for ids, keep in zip(rollouts.prompts.ids, rollouts.prompts.mask, strict=True)]
        thoughts = self._thoughts(actor, rollouts, after)
        rows = [prompts[number] + thought + lead for number, thought in zip(rollouts.prompt.tolist(), thoughts, strict=True)]
        informed = self._truth_logprobs(actor, rows, rollouts.samples)
        # Outside the forward context: autocast keeps casts of the weights until it is left.
        with self.average.in_place_of(actor.policy):
            baseline = self._truth_logprobs(actor, [prompt + after + lead for prompt in prompts], rollouts.prompts.samples)
        self._gains = informed - baseline[rollouts.prompt.cpu()]

    def score(self, rollouts: Rollouts) -> Tensor:
        if self._gains is None or len(self._gains) != len(rollouts):
            raise ValueError("asks the policy and was called without `prepare`; it rewards training and judges no evaluation.")
        return self._gains

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.average.weights, "step": self.average.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.average.weights, self.average.step = dict(state["weights"]), state["step"]

    def _tokens(self, actor: Actor, option: str) -> list[int]:
        text = getattr(self, option)
        try:
            return list(actor.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        except Exception as error:  # of tokenizers' own, by its type
            raise ValueError(f"reward.{option} is {text!r}, which the policy's tokenizer cannot write.") from error

    def _thoughts(self, actor: Actor, rollouts: Rollouts, after: list[int]) -> list[list[int]]:
        """Tokens of each row's thought, to the end of it and without the end token."""
        if not self._pieces:
            known = token_bytes(actor.renderer.tokenizer)
            self._pieces = known + [b""] * (actor.policy.vocabulary - len(known))  # heads are padded
        rows = rollouts.completions()
        ends = [thought_end([self._pieces[token] for token in row], self.after.encode()) for row in rows]
        return [row + after if end is None else row[:end] for row, end in zip(rows, ends, strict=True)]

    def _truth_logprobs(self, actor: Actor, prefixes: list[list[int]], samples: list[Sample]) -> Tensor:
        """(n) float32 mean log-probability of the tokens of each sample's target after its prefix."""
        pad, found = actor.renderer.pad_id, []
        for first in range(0, len(samples), ROWS_PER_FORWARD):
            part = samples[first : first + ROWS_PER_FORWARD]
            targets = [list(sample.target) for sample in part]
            batch = PromptBatch.pad(prefixes[first : first + ROWS_PER_FORWARD], targets, part, pad)
            rows = TokenBatch.from_prompts(batch, pad, completion_only=True).to(actor.runtime.device)
            self._check(actor.policy.context, rows, part)
            with actor.runtime.forward_context():
                logprobs = actor.policy.score_sequences(rows).logprobs  # (n, S), 0 except at targets
            found.append(logprobs.float().sum(1) / rows.target.sum(1))
        return torch.cat(found).cpu()

    def _check(self, context: int | None, rows: TokenBatch, samples: list[Sample]) -> None:
        for sample, length in zip(samples, rows.lengths.tolist(), strict=True):
            if not sample.target:
                raise ValueError(f"sample {sample.number} has no target for {self.name}; set `positions` of the data.")
            if context is not None and length > context:
                raise ValueError(
                    f"sample {sample.number} has {length} tokens with thought and target, more than the model's {context} "
                    "positions; write a smaller sampler.max_new_tokens."
                )


def thought_end(pieces: Sequence[bytes], after: bytes) -> int | None:
    """How many tokens reach to the end of the last ``after``, None where it does not occur."""
    place = b"".join(pieces).rfind(after)
    ends = list(accumulate(len(piece) for piece in pieces))
    return None if place < 0 else bisect_left(ends, place + len(after)) + 1
