"""Counting of right answers, truncated completions and votes, on completions written by hand."""

import re

import pytest
from tiny_rollouts import completions_of

from lit_rl.evaluation import Evaluation, NextTokenEvaluation
from lit_rl.rewards import AnswerFormat, ArithmeticFormat, PrefixMatch
from lit_rl.text.token_bytes import SEPARATOR
from lit_rl.types import Sample

WHOLE = AnswerFormat(after="", opening="", closing="")
THREE, FOUR = (Sample("1+2<answer>", "", "3", 7), Sample("2+2<answer>", "", "4", 8))


def test_greedy_completions_are_counted_over_batches_with_an_interval():
    evaluation = Evaluation()
    evaluation.count(completions_of([THREE, FOUR], ["3", "3"]))
    evaluation.count(completions_of([THREE, FOUR], ["3", "4"], [False, True]))
    metrics = evaluation.compute()
    assert set(metrics) == {f"{name}{side}" for name in ("accuracy", "truncated") for side in ("", "_low", "_high")}
    assert (metrics["accuracy"], metrics["truncated"]) == (0.5, 0.25)
    assert metrics["accuracy_low"] == pytest.approx(0.1500, abs=1e-4)  # Wilson, 2 of 4
    assert metrics["accuracy_high"] == pytest.approx(0.8500, abs=1e-4)


def test_samples_of_a_problem_are_counted_and_vote_together():
    evaluation = Evaluation(samples=4)
    # The first problem: 2 of 4 right, "3" wins the vote. The second: 1 of 4 right, "5" wins.
    evaluation.count_samples(completions_of([THREE, FOUR], ["3", "6/2", "4", "", "5", "5", "4", "x"]))
    metrics = evaluation.compute()
    assert metrics["pass_at_1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert (metrics["pass_at_4"], metrics["maj_at_4"]) == (1.0, 0.5)


def test_another_evaluation_starts_from_nothing():
    evaluation = Evaluation()
    evaluation.count(completions_of([THREE], ["3"]))
    assert evaluation.compute()["accuracy"] == 1.0
    evaluation.count(completions_of([THREE], ["4"]))
    assert evaluation.compute()["accuracy"] == 0.0


def test_an_accuracy_is_a_share_of_right_answers_whatever_the_reward_pays():
    position = Sample("", "", SEPARATOR.join(["ab", "cd"]), 1)
    texts = ["ab", "abx", "", "abcd"]  # right, right for two of three bytes, no prediction, right
    for judge in (
        PrefixMatch(WHOLE, credit="partial"),
        PrefixMatch(WHOLE, credit="first_token"),
        PrefixMatch(WHOLE, no_answer=-1.0),
    ):
        evaluation = Evaluation(correct=judge, samples=4)
        for text in texts:
            evaluation.count(completions_of([position], [text]))
        evaluation.count_samples(completions_of([position], texts))
        metrics = evaluation.compute()
        assert metrics["accuracy"] == metrics["pass_at_1"] == 0.5
        assert metrics["accuracy_low"] == pytest.approx(0.15, abs=1e-4)  # Wilson, 2 of 4


def test_every_metric_has_a_name_that_mlflow_takes():
    evaluation = Evaluation(samples=2)
    evaluation.count_samples(completions_of([THREE], ["3", "4"]))
    assert all(re.fullmatch(r"[/\w.\- :]+", name) for name in evaluation.compute())


def test_without_completions_there_are_no_matched_tokens():
    assert NextTokenEvaluation(max_new_tokens=0).compute() == {}


def test_metrics_without_problems_are_left_out():
    assert Evaluation(samples=4).compute() == {}
    assert Evaluation(max_new_tokens=0).compute() == {}


def test_the_judge_says_what_is_right():
    evaluation = Evaluation(correct=ArithmeticFormat())
    evaluation.count(completions_of([THREE, FOUR], ["5", "x"]))
    assert evaluation.compute()["accuracy"] == 0.5
