"""Evaluation that keeps the answers to each question, for a comparison of policies question by question."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.rewards.majority_vote import majority
from lit_rl.rollouts import Rollouts
from lit_rl.types import Sample


@dataclass
class QuestionResult:
    """Answers of one policy to one question."""

    number: int
    """Number of the question in its data set."""
    question: str
    reference: str
    completion: str = ""
    """The greedy completion; the other fields up to ``tokens`` are of it too."""
    answer: str | None = None
    """Answer that the judge reads in the completion; None if it finds none."""
    right: bool = False
    truncated: bool = False
    """Whether the completion ran into its limit."""
    tokens: int = 0
    """Length of the completion, its end token included."""
    sampled_answers: list[str | None] = field(default_factory=list)
    """Answers of the sampled completions."""
    sampled_right: list[bool] = field(default_factory=list)
    vote: str | None = None
    """Most frequent sampled answer."""
    vote_right: bool = False


class QuestionEvaluation(Evaluation):
    """`Evaluation` that keeps each question's answers in ``results`` instead of counting them.

    Args:
        max_new_tokens: longest completion in tokens.
        options: further options of `Evaluation`.
    """

    def __init__(self, max_new_tokens: int = 256, **options: Any) -> None:
        super().__init__(max_new_tokens, **options)
        if not self.generates:
            raise ValueError("model.evaluation.max_new_tokens is 0, which generates nothing to compare; write 1 or more.")
        self.results: dict[int, QuestionResult] = {}
        """Results of this rank by the number of the question."""

    def count(self, rollouts: Rollouts) -> None:
        rows = zip(
            rollouts.samples,
            rollouts.texts,
            self.correct.answers(rollouts),
            self.correct.hits(rollouts).tolist(),
            rollouts.truncated.tolist(),
            rollouts.lengths.tolist(),
            strict=True,
        )
        for sample, text, answer, right, truncated, tokens in rows:
            result = self._result(sample)
            result.completion, result.answer, result.right = text, _as_text(answer), bool(right)
            result.truncated, result.tokens = truncated, tokens

    def count_samples(self, rollouts: Rollouts) -> None:
        answers, hits = self.correct.answers(rollouts), self.correct.hits(rollouts).bool().tolist()
        # Rows of a sampler stand in the order of prompts, `samples` rows each.
        for place, sample in enumerate(rollouts.prompts.samples):
            rows = slice(place * self.samples, (place + 1) * self.samples)
            vote = majority(answers[rows])
            result = self._result(sample)
            result.sampled_answers, result.sampled_right = [_as_text(answer) for answer in answers[rows]], hits[rows]
            result.vote, result.vote_right = _as_text(vote), self.correct.is_right(vote, sample)

    def compute(self) -> dict[str, float]:
        # Nothing was counted.
        return {}

    def _result(self, sample: Sample) -> QuestionResult:
        new = QuestionResult(sample.number, sample.question or sample.prompt, sample.reference)
        result = self.results.setdefault(sample.number, new)
        # Policies are compared by these numbers.
        if (result.question, result.reference) != (new.question, new.reference):
            raise ValueError(f"data: two questions have the number {sample.number}; give each sample of a set its own.")
        return result


def _as_text(answer: Hashable | None) -> str | None:
    return None if answer is None else str(answer)
