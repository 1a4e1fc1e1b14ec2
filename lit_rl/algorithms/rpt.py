r"""Reinforcement Pre-Training (RPT, arXiv 2506.08007): reasoning about the next tokens of a text, rewarded if they come true.

A sample is a position of a text. The policy sees the text before it, draws G responses of reasoning and a final prediction in
``\boxed{}``, and earns 1 for a prediction that is the beginning of the true continuation, up to the end of one of its tokens:

    r(y) = 1  if  bytes(y) = bytes(x)[:l]  and  l is the end of a token of x,  else 0        (equation 3)

for the tokens x after the position. Any objective of the GRPO family will do; the paper's is GRPO, strictly on-policy, without
KL. The data give the positions (``data.positions``), the callback `EntropyFilter` leaves out easy ones, `DynamicSampling`
replaces groups without signal.

Run: ``lit-rl fit --config rpt_omni_math``
"""

from __future__ import annotations

from typing import Any

from lit_rl.algorithms.grpo import GRPO
from lit_rl.evaluation import Evaluation, NextTokenEvaluation
from lit_rl.models.spec import PolicySpec
from lit_rl.rewards import AnswerFormat, PrefixMatch, Reward
from lit_rl.sampling.position_renderer import PositionRenderer
from lit_rl.text.templates import DIRECT, check_template

WHOLE_COMPLETION = AnswerFormat(after="", opening="", closing="")
"""Without reasoning a completion is its own prediction."""


class RPT(GRPO):
    """Reinforcement Pre-Training on positions of texts.

    Args:
        policy: the model that learns and its tokenizer.
        template: form of the question: ``v0`` to ``v6``, a text of your own with ``{context}``, or ``direct``, which asks to
            continue the text without reasoning: the whole completion is the prediction. The tokenizer's chat template
            surrounds all but ``direct``.
        max_context: number of tokens before a position that are shown; 0 shows all that the data give.
        reward: scores completions; default: `PrefixMatch`, of the whole completion with ``direct``.
        evaluation: answers held-out problems and judges the answers; default: next-token accuracy, plain and after
            reasoning, by entropy.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        template: str = "v0",
        max_context: int = 4096,
        reward: Reward | None = None,
        evaluation: Evaluation | None = None,
        **options: Any,
    ) -> None:
        check_template(template)
        if max_context < 0:
            raise ValueError(f"model.max_context is {max_context}; write 0 (no limit) or more.")
        matching = PrefixMatch(WHOLE_COMPLETION) if template == DIRECT else PrefixMatch()
        evaluation = evaluation or NextTokenEvaluation(correct=matching)
        super().__init__(policy, reward=reward or matching, evaluation=evaluation, **options)
        # After the base class, whose renderer it replaces: positions are token ids, and predictions are compared byte by byte.
        self.renderer = PositionRenderer(self.tokenizer, template, max_context)
