"""Information gain (RLP): by how much does a thought make the true continuation likelier?

Reinforcement Learning Pre-training, arXiv 2510.01265, section 2: r = log p(x | context, thought) - log p_ema(x | context, no
thought); the baseline p_ema is an exponential moving average of the policy. It needs neither verifier nor prediction: the true
continuation x is `Sample.target`.
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
from lit_rl.text.encoding import encode_inside
from lit_rl.text.token_bytes import token_bytes
from lit_rl.types import PromptBatch, Sample, TokenBatch

ROWS_PER_FORWARD = 8
"""Sequences of one forward."""


class InformationGain(Reward):
    """Gain in log-probability of the true continuation by a thought: nats per token of the sample's target.

    RLP predicts one token; over several this is the mean of their gains. The thought is the completion up to its last
    ``after`` (to the end of the token in which ``after`` ends), or the whole completion with ``after`` added. Without a thought
    ``after`` follows the prompt at once, and the moving average of the policy is asked (`WeightAverage`), which is updated once
    per rollout.

    Args:
        decay: decay of the average, 0 to 1; 0 is the policy itself, 1 the policy as training began.
        after: text that ends a thought.
        lead: text between the thought and the true continuation, such as the opening of a box.
    """

    name = "information_gain"

    def __init__(self, decay: float = 0.999, after: str = "</think>", lead: str = "") -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"reward.decay is {decay}; write 0 (the policy itself) to 1 (as it was when training began).")
        self.after, self.lead, self.average = after, lead, WeightAverage(decay)
        self._pieces: list[bytes] = []
        self._gains: Tensor | None = None  # (N), for the rollouts that were prepared last

    @torch.no_grad()
    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        """Update the average, and score the true continuations under policy and average."""
        if actor.runtime.sharded:
            raise ValueError(f"reward {self.name} averages whole weights, and fsdp2 shards them: write trainer.strategy ddp.")
        # Before scoring: at the first rollout there is no average yet, and this call makes it the policy itself.
        self.average.update(actor.policy, actor.runtime.step)
        after, lead = self._tokens(actor, "after", self.after), self._tokens(actor, "lead", self.lead)
        # (P) lists, without padding: a thought follows its prompt directly.
        prompts = [ids[keep].tolist() for ids, keep in zip(rollouts.prompts.ids, rollouts.prompts.mask, strict=True)]
        thoughts = self._thoughts(actor, rollouts, after)
        rows = [prompts[number] + thought + lead for number, thought in zip(rollouts.prompt.tolist(), thoughts, strict=True)]
        informed = self._truth_logprobs(actor, rows, rollouts.samples)  # (N)
        # Outside the forward context: autocast keeps casts of the weights until it is left.
        with self.average.in_place_of(actor.policy):
            # (P): without a thought all rows of a prompt ask the same question.
            baseline = self._truth_logprobs(actor, [prompt + after + lead for prompt in prompts], rollouts.prompts.samples)
        self._gains = informed - baseline[rollouts.prompt.cpu()]

    def score(self, rollouts: Rollouts) -> Tensor:
        if self._gains is None or len(self._gains) != len(rollouts):
            raise ValueError("asks the policy and was called without `prepare`; it is for training and not for an evaluation.")
        return self._gains

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.average.weights, "step": self.average.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.average.weights, self.average.step = dict(state["weights"]), state["step"]

    def _tokens(self, actor: Actor, option: str, text: str) -> list[int]:
        try:
            return encode_inside(text, actor.renderer.tokenizer) if text else []
        except Exception as error:  # tokenizers raises its own types, which it does not export
            raise ValueError(f"reward.{option} is {text!r}, which the policy's tokenizer cannot write.") from error

    def _thoughts(self, actor: Actor, rollouts: Rollouts, after: list[int]) -> list[list[int]]:
        """Tokens of each row's thought, its end among them, without the end token of the row."""
        if not self._pieces:
            known = token_bytes(actor.renderer.tokenizer)
            # Heads are often padded to more ids than the tokenizer has.
            self._pieces = known + [b""] * (actor.policy.vocabulary - len(known))
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
    """Number of tokens up to the end of the last ``after``, None if it does not occur."""
    # Bytes and not tokens: the policy may spell `after` with other tokens than the tokenizer.
    place = b"".join(pieces).rfind(after)
    ends = list(accumulate(len(piece) for piece in pieces))
    return None if place < 0 else bisect_left(ends, place + len(after)) + 1
