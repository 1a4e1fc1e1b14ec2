r"""Reinforcement Pre-Training (RPT, arXiv 2506.08007): reason about the next tokens of a text, and be paid when they come true.

A sample is a position of a text. The policy sees what stands before it, draws G responses of reasoning and a final prediction
in ``\boxed{}``, and earns 1 for a prediction that is the beginning of what really follows, up to the end of one of its tokens:

    r(y) = 1  where  bytes(y) = bytes(x)[:l]  and  l is the end of a token of x,  else 0        (equation 3)

for the tokens x behind the position. What is made of the rewards is any objective of the GRPO family; the paper's is GRPO,
strictly on-policy, without KL. Positions come from the data (``data.positions``), easy ones are left out by the callback
`EntropyFilter`, groups without signal are replaced by `DynamicSampling`.

Run: ``lit-rl fit --config rpt_omni_math``
"""

from __future__ import annotations

from typing import Any

from lit_rl.evaluation import Evaluation
from lit_rl.group_relative import GroupRelative
from lit_rl.loading import PolicySpec
from lit_rl.next_token import NextTokenEvaluation
from lit_rl.prompts import DIRECT, check_template, fill_in
from lit_rl.rewards import AnswerFormat, PrefixMatch, Reward
from lit_rl.rollouts import Rollouts
from lit_rl.token_bytes import token_bytes
from lit_rl.types import PromptBatch

WHOLE_COMPLETION = AnswerFormat(after="", opening="", closing="")
"""Without reasoning a completion is its own prediction."""


class RPT(GroupRelative):
    """Reinforcement Pre-Training on positions of texts.

    Args:
        policy: the model that learns and its tokenizer.
        template: how it is asked: ``v0`` to ``v6``, a text of your own with ``{context}``, or ``direct``, where it continues
            the text without reasoning and the whole completion is the prediction. A chat template of the tokenizer is put
            around all but ``direct``.
        max_context: tokens before a position that are shown; older ones are left out. 0 shows all that the data give.
        reward: default: `PrefixMatch`, of the whole completion with ``direct``.
        evaluation: default: next-token accuracy, plain and after reasoning, by entropy.
    """

    def __init__(
        self,
        policy: PolicySpec,
        template: str = "v0",
        max_context: int = 4096,
        reward: Reward | None = None,
        evaluation: Evaluation | None = None,
        **options: Any,
    ) -> None:
        check_template(template)
        matching = PrefixMatch(WHOLE_COMPLETION) if template == DIRECT else PrefixMatch()
        evaluation = evaluation or NextTokenEvaluation(correct=matching)
        super().__init__(policy, reward=reward or matching, evaluation=evaluation, **options)
        if max_context < 0:
            raise ValueError(f"model.max_context is {max_context}; write 0 (no limit) or more.")
        self.template, self.max_context = template, max_context
        self._pieces = token_bytes(self.tokenizer)

    def configure_policy(self) -> None:
        super().configure_policy()
        # Heads are often padded to more ids than the tokenizer has.
        self._pieces += [b""] * (self.policy.vocabulary - len(self._pieces))

    def render(self, prompts: PromptBatch) -> PromptBatch:
        """Ask about the positions: prompts of contexts become prompts of templates."""
        contexts = [self._context(sample) for sample in prompts.samples]
        texts = self.tokenizer.batch_decode(contexts, clean_up_tokenization_spaces=False)
        if self.template != DIRECT:
            texts = [self._ask(text) for text in texts]
            contexts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        samples = [sample._replace(prompt=text) for sample, text in zip(prompts.samples, texts, strict=True)]
        batch = PromptBatch.pad(contexts, prompts.completions, samples, int(self.tokenizer.pad_token_id))
        return batch.to(prompts.ids.device)

    def _context(self, sample: Any) -> list[int]:
        if not sample.context:
            raise ValueError(
                f"sample {sample.number} is no position of a text; RPT learns from positions: write data.init_args.positions, "
                "for example {labels_length: 1}."
            )
        return list(sample.context[-self.max_context :])

    def _ask(self, context: str) -> str:
        question = fill_in(self.template, context)
        if not self.tokenizer.chat_template:
            return question
        message = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def language_prompts(self, prompts: PromptBatch) -> PromptBatch:
        """The texts themselves, without template: contexts, and the tokens that follow."""
        contexts = [self._context(sample) for sample in prompts.samples]
        pad = int(self.tokenizer.pad_token_id)
        return PromptBatch.pad(contexts, prompts.completions, prompts.samples, pad).to(self.device)

    def decode(self, rollouts: Rollouts) -> list[str]:
        """The completions byte for byte: bytes that are no whole character stand as surrogates (``surrogateescape``)."""
        lengths = (rollouts.lengths - (~rollouts.truncated).long()).tolist()
        rows = zip(rollouts.completion_ids.tolist(), lengths, strict=True)
        return [b"".join(self._pieces[token] for token in row[:end]).decode("utf-8", "surrogateescape") for row, end in rows]
