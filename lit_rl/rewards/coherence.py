"""Regime W: rewards a question by its right answers and by how well the completions of all arms agree.

    s_end   share of pairs of completions whose answers are equal          s_path  1 / (1 + var(words) / mean(words))
    s_cf    share of answers that follow a change of the question          s_wm    0.4 s_end + 0.3 s_path + 0.3 s_cf

    reward  (1 if any completion is right, else -0.5) + 0.7 s_wm - 0.001 max(0, mean words - 400)

Lengths are in words; ``var`` divides by the number of completions. A reward for the whole question pays its wrong completions
too; with ``per: response`` each completion is paid for itself. `lit-rl demo regime_w` shows the scores on a few questions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rl.options import check_choice, check_whole
from lit_rl.rewards.base import AnswerReward, Reward
from lit_rl.rewards.final_answer import FinalNumber
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.sampler import Sampler
from lit_rl.tasks.changed_questions import Changed, change_question
from lit_rl.text.encoding import encode
from lit_rl.types import PromptBatch, Sample

Per = Literal["question", "response"]

WEIGHTS = {"s_end": 0.4, "s_path": 0.3, "s_cf": 0.3}
"""Weights of the scores in s_wm."""
RIGHT, WRONG, COHERENCE = 1.0, -0.5, 0.7
"""Rewards of a right and of a wrong answer, and the factor on s_wm."""
FREE_WORDS, PER_WORD = 400, 0.001
"""Words that cost nothing, and the cost of each further word."""
MAX_COST = 0.5
"""Most that the length of a response costs; the least right one earns 1 - 0.5, the best wrong one -0.5 + 0.7."""
NEUTRAL = 0.5
"""s_cf of a question that was not changed."""


def end_agreement(answers: Sequence[Hashable | None]) -> float:
    """s_end: share of pairs with equal answers; 1 for one completion, 0 for none. No answer equals nothing."""
    pairs = list(combinations(answers, 2))
    if not pairs:
        return float(len(answers))
    return sum(first is not None and first == second for first, second in pairs) / len(pairs)


def path_consistency(words: Sequence[int]) -> float:
    """s_path: 1 for completions of equal length, less the more their lengths vary; 0 for none."""
    if not words:
        return 0.0
    mean = sum(words) / len(words)
    variance = sum((count - mean) ** 2 for count in words) / len(words)
    return 1 / (1 + variance / mean) if mean else 1.0


def coherence(s_end: Any, s_path: Any, s_cf: Any) -> Any:
    """s_wm of three numbers, or of three tensors."""
    return WEIGHTS["s_end"] * s_end + WEIGHTS["s_path"] * s_path + WEIGHTS["s_cf"] * s_cf


class RegimeW(Reward):
    """Correctness, agreement and length of the completions of a question together (Regime W).

    The log has the scores as parts: ``right`` (share of questions with a right completion, or of right responses), ``s_end``,
    ``s_path``, ``s_cf``, ``s_wm``, and ``cost`` of the length.

    With ``counterfactual_tokens`` one number of each question is changed, and the policy answers the changed question once in
    the prompt of each style, greedily. If the right answer to it can be computed (`lit_rl.tasks.changed_questions`), an answer
    follows the change if it is right. If it cannot, an answer follows if there is one, and it differs from the completion's own
    answer. The completions of a prompt whose answer does not follow have an s_cf of 0, others of 1.

    Args:
        correct: reads and judges the answers; default: `FinalNumber`, or else the last number of a completion.
        per: ``question`` pays all completions of a question alike, right or wrong, for the best of them. ``response`` pays each
            completion for itself: s_end is the share of the others that agree with it, s_path falls with the distance of its
            length from the mean, and its length costs 0.5 at most, so that right beats wrong whatever the agreement.
        counterfactual_tokens: longest answer to a changed question, in tokens; 0 asks no changed questions: s_cf is 0.5.
    """

    name = "regime_w"

    def __init__(self, correct: AnswerReward | None = None, per: Per = "question", counterfactual_tokens: int = 0) -> None:
        check_choice("reward.per", per, Per)
        check_whole("reward", "counterfactual_tokens", counterfactual_tokens, 0)
        self.correct: AnswerReward[Any] = correct or FinalNumber(fallback="last_number")
        self.per, self.counterfactual_tokens = per, counterfactual_tokens
        self._follows: Tensor | None = None  # (N), for the rollouts that were prepared last

    @property
    def one_per_group(self) -> bool:  # type: ignore[override]
        return self.per == "question"

    @property
    def asks_policy(self) -> bool:
        return self.counterfactual_tokens > 0

    def example(self, sample: Sample) -> str:
        return self.correct.example(sample)

    @torch.no_grad()
    def prepare(self, actor: Actor, rollouts: Rollouts) -> None:
        """Ask the changed questions."""
        if not self.asks_policy:
            return
        changes = [self._change(actor, sample) for sample in rollouts.prompts.samples]  # (P)
        sampler = Sampler(max_new_tokens=self.counterfactual_tokens, temperature=0.0)
        sampler.length_option = "reward.counterfactual_tokens"
        # All prompts, changed or not: under sharded weights every rank must run a forward.
        samples = [
            sample if change is None else _changed_sample(sample, change)
            for sample, change in zip(rollouts.prompts.samples, changes, strict=True)
        ]
        ids = encode([sample.prompt for sample in samples], actor.renderer.tokenizer)
        prompts = PromptBatch.pad(ids, [[] for _ in samples], samples, actor.renderer.pad_id).to(actor.runtime.device)
        answers = self.correct.answers(actor.generate(sampler, prompts, 1, rollout=0))  # (P)
        found = []
        for number, own in zip(rollouts.prompt.tolist(), self.correct.answers(rollouts), strict=True):
            change = changes[number]
            right = change is not None and change.answer is not None and self.correct.is_right(answers[number], samples[number])
            found.append(NEUTRAL if change is None else float(follows(change, answers[number], own, right)))
        self._follows = torch.tensor(found)

    def _change(self, actor: Actor, sample: Sample) -> Changed | None:
        question = sample.question.strip()
        if not question or sample.prompt.count(question) != 1:
            raise ValueError(
                f"sample {sample.number} has no question in its prompt that could be changed; write counterfactual_tokens 0."
            )
        # Keyed like all draws; arms of a question get the same change.
        rng = Random(f"{actor.seed} {actor.runtime.step} {sample.number}")
        return change_question(question, sample.completion, sample.reference, rng)

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        return self.scores(rollouts, self._counterfactual(rollouts))

    def scores(self, rollouts: Rollouts, s_cf: Tensor) -> dict[str, Tensor]:
        """Parts (N) of the reward, from whether the answer of each row follows a change of its question, (N)."""
        answers = self.correct.answers(rollouts)
        right = torch.tensor([self.correct.is_right(*pair) for pair in zip(answers, rollouts.samples, strict=True)]).float()
        words = [len(text.split()) for text in rollouts.texts]
        parts = {name: torch.zeros(len(rollouts)) for name in ("right", "s_end", "s_path", "s_cf", "cost")}
        score = self._question if self.per == "question" else self._responses
        for group in range(rollouts.num_groups):
            rows = rollouts.rows_of([group]).tolist()
            values = score([answers[row] for row in rows], [words[row] for row in rows], right[rows], s_cf[rows])
            for name, value in values.items():
                parts[name][rows] = value
        return parts | {"s_wm": coherence(parts["s_end"], parts["s_path"], parts["s_cf"])}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        return WRONG + (RIGHT - WRONG) * parts["right"] + COHERENCE * parts["s_wm"] - parts["cost"]

    def score(self, rollouts: Rollouts) -> Tensor:
        return self.total(self.parts(rollouts))

    def _counterfactual(self, rollouts: Rollouts) -> Tensor:
        """(N) s_cf of each row."""
        if not self.asks_policy:
            return torch.full((len(rollouts),), NEUTRAL)
        if self._follows is None or len(self._follows) != len(rollouts):
            raise ValueError("asks the policy and was called without `prepare`; write counterfactual_tokens 0 there.")
        return self._follows

    def _question(self, answers: list[Any], words: list[int], right: Tensor, s_cf: Tensor) -> dict[str, Tensor | float]:
        """Scores of a question, for all its rows."""
        return {
            "right": float(right.any()),
            "s_end": end_agreement(answers),
            "s_path": path_consistency(words),
            "s_cf": float(s_cf.mean()),
            "cost": PER_WORD * max(0.0, sum(words) / len(words) - FREE_WORDS),
        }

    def _responses(self, answers: list[Any], words: list[int], right: Tensor, s_cf: Tensor) -> dict[str, Tensor | float]:
        """Scores of each row (n) of a question; the mean of s_end over the rows is the question's."""
        mean, others = sum(words) / len(words), len(answers) - 1
        agreeing = [sum(own is not None and own == other for other in answers) - (own is not None) for own in answers]
        return {
            "right": right,
            "s_end": torch.tensor([count / others if others else 1.0 for count in agreeing]),
            "s_path": torch.tensor([1 / (1 + (count - mean) ** 2 / mean) if mean else 1.0 for count in words]),
            "s_cf": s_cf,
            "cost": torch.tensor([min(MAX_COST, PER_WORD * max(0, count - FREE_WORDS)) for count in words]),
        }


def follows(change: Changed, answer: Hashable | None, own: Hashable | None, right: bool) -> bool:
    """Whether an answer to a changed question follows the change.

    Args:
        change: the changed question.
        answer: the answer to it; None without one.
        own: the answer of a completion to the question as it was; None without one.
        right: whether ``answer`` is right, if the right answer is known.
    """
    if answer is None or own is None:
        return False
    return right if change.answer is not None else answer != own


def _changed_sample(sample: Sample, change: Changed) -> Sample:
    """The sample with the changed question in its prompt, and the right answer if it is known."""
    prompt = sample.prompt.replace(sample.question.strip(), change.question)
    return sample._replace(prompt=prompt, question=change.question, completion="", reference=str(change.answer or ""))
