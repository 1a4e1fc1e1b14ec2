"""Comparison of policies on the same questions: metrics of each policy, paired differences, questions that changed sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from lit_rl.evaluation.metrics import pass_at_k, wilson_interval
from lit_rl.evaluation.paired import PairedCounts, mcnemar, paired_interval
from lit_rl.evaluation.questions import QuestionResult

Results = Mapping[str, Sequence[QuestionResult]]
"""Results of each policy, by the policy's name."""


def compare(results: Results) -> dict[str, Any]:
    """Report of a comparison.

    Policies whose data left out different questions (``data.max_prompt_tokens``) are compared on the questions of all.

    Returns:
        ``questions`` and ``left_out``, their numbers; ``policies``, the metrics of each by name, proportions as mean, low and
        high; ``pairs``, the second policy of each pair minus the first; ``changed``, the questions that some policies have
        right and others wrong in their greedy completions, with all texts.
    """
    common = set.intersection(*({each.number for each in own} for own in results.values()))
    kept = {name: sorted((each for each in own if each.number in common), key=_number) for name, own in results.items()}
    everything = {each.number for own in results.values() for each in own}
    return {
        "questions": len(common),
        "left_out": len(everything) - len(common),
        "policies": {name: _metrics(own) for name, own in kept.items()},
        "pairs": [pair for first, second in combinations(kept, 2) for pair in _pairs(first, second, kept)],
        "changed": _changed(kept),
    }


def _number(result: QuestionResult) -> int:
    return result.number


def _metrics(results: Sequence[QuestionResult]) -> dict[str, Any]:
    """Metrics of one policy: proportions with Wilson intervals, and the mean length of greedy completions in tokens."""
    shares: dict[str, list[float]] = {name: [right(each) for each in results] for name, right in _judgements(results).items()}
    if samples := _samples(results):
        shares["pass_at_1"] = [pass_at_k(samples, sum(each.sampled_right), 1) for each in results]
    shares["answered"] = [each.answer is not None for each in results]
    shares["truncated"] = [each.truncated for each in results]
    metrics: dict[str, Any] = {name: _proportion(values) for name, values in shares.items()}
    return metrics | {"tokens": fmean(each.tokens for each in results) if results else 0.0}


def _judgements(results: Sequence[QuestionResult]) -> dict[str, Callable[[QuestionResult], bool]]:
    """Judgements of a question as right or wrong, by the names of their metrics."""
    judgements: dict[str, Callable[[QuestionResult], bool]] = {"accuracy": lambda each: each.right}
    if samples := _samples(results):
        judgements[f"maj_at_{samples}"] = lambda each: each.vote_right
        judgements[f"pass_at_{samples}"] = lambda each: any(each.sampled_right)
    return judgements


def _samples(results: Sequence[QuestionResult]) -> int:
    """Sampled completions of each question."""
    return len(results[0].sampled_right) if results else 0


def _proportion(values: Sequence[float]) -> dict[str, float]:
    low, high = wilson_interval(sum(values), len(values))
    return {"mean": sum(values) / max(1, len(values)), "low": low, "high": high}


def _pairs(first: str, second: str, results: Results) -> list[dict[str, Any]]:
    """Comparisons of two policies, one for each judgement."""
    pairs = []
    for metric, right in _judgements(results[first]).items():
        before, after = ([right(each) for each in results[name]] for name in (first, second))
        counts = PairedCounts.of(before, after)
        low, high = paired_interval(counts)
        sides = [(each.number, *judged) for each, *judged in zip(results[first], before, after, strict=True)]
        pairs.append(
            {
                "first": first,
                "second": second,
                "metric": metric,
                "difference": {"mean": counts.difference, "low": low, "high": high},
                "p_value": mcnemar(counts),
                "gained": [number for number, first_right, second_right in sides if second_right and not first_right],
                "lost": [number for number, first_right, second_right in sides if first_right and not second_right],
            }
        )
    return pairs


def _changed(results: Results) -> list[dict[str, Any]]:
    """Questions that some policies have right and others wrong, with the greedy completion of each policy."""
    changed = []
    for same in zip(*results.values(), strict=True):
        if len({each.right for each in same}) == 2:
            answers = {
                name: {"right": each.right, "answer": each.answer, "completion": each.completion}
                for name, each in zip(results, same, strict=True)
            }
            asked = {"number": same[0].number, "question": same[0].question, "reference": same[0].reference}
            changed.append(asked | {"answers": answers})
    return changed
