"""Comparison of policies by the results of each question."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lit_rl.evaluation.compare import compare
from lit_rl.evaluation.questions import QuestionResult


def results(right: list[bool], **fields) -> list[QuestionResult]:
    """One result for each question, numbered from 10."""
    return [QuestionResult(10 + n, f"question {n}", "1", f"text {n}", "1", each, **fields) for n, each in enumerate(right)]


def test_each_policy_has_its_metrics_with_wilson_intervals():
    base = results([True, False, False, False], sampled_answers=["1", "2"], sampled_right=[True, False])
    base[0].tokens, base[1].answer, base[2].truncated, base[3].vote_right = 8, None, True, True
    metrics = compare({"base": base})["policies"]["base"]
    means = {name: value["mean"] for name, value in metrics.items() if name != "tokens"}
    assert means == {
        "accuracy": 0.25,
        "maj_at_2": 0.25,
        "pass_at_2": 1.0,
        "pass_at_1": 0.5,
        "answered": 0.75,
        "truncated": 0.25,
    }
    assert metrics["tokens"] == 2.0
    low, high = proportion_confint(1, 4, method="wilson")
    assert (metrics["accuracy"]["low"], metrics["accuracy"]["high"]) == pytest.approx((low, high), abs=1e-6)


def test_equal_policies_do_not_differ():
    same = [True, False, True, True]
    report = compare({"base": results(same), "twin": results(same)})
    (pair,) = report["pairs"]
    assert (pair["difference"]["mean"], pair["p_value"], pair["gained"], pair["lost"]) == (0.0, 1.0, [], [])
    assert pair["difference"]["low"] < 0 < pair["difference"]["high"]
    assert report["changed"] == []


def test_different_policies_differ_as_statsmodels_says():
    draw = np.random.default_rng(3)
    base, better = (draw.random(300) < 0.3).tolist(), (draw.random(300) < 0.4).tolist()
    (pair,) = compare({"base": results(base), "better": results(better)})["pairs"]
    table = np.zeros((2, 2), dtype=int)
    np.add.at(table, (np.array(base).astype(int), np.array(better).astype(int)), 1)
    assert pair["p_value"] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert pair["difference"]["mean"] == pytest.approx(np.mean(better) - np.mean(base))
    assert (len(pair["gained"]), len(pair["lost"])) == (table[0, 1], table[1, 0])
    assert pair["difference"]["low"] < pair["difference"]["mean"] < pair["difference"]["high"]


def test_every_pair_is_compared_by_every_judgement():
    many = {name: results([True], sampled_right=[True, True]) for name in ("base", "sft", "ppo")}
    pairs = [(pair["first"], pair["second"], pair["metric"]) for pair in compare(many)["pairs"]]
    judgements = ("accuracy", "maj_at_2", "pass_at_2")
    expected = [("base", "sft"), ("base", "ppo"), ("sft", "ppo")]
    assert pairs == [(*names, metric) for names in expected for metric in judgements]


def test_questions_that_changed_sides_are_told_with_all_texts():
    report = compare({"base": results([True, True, False]), "sft": results([False, True, True])})
    (pair,) = report["pairs"]
    assert (pair["gained"], pair["lost"]) == ([12], [10])
    first, second = report["changed"]
    assert (first["number"], second["number"]) == (10, 12)
    assert (first["question"], first["reference"]) == ("question 0", "1")
    assert first["answers"]["sft"] == {"right": False, "answer": "1", "completion": "text 0"}


def test_questions_that_some_policy_was_not_asked_are_left_out():
    report = compare({"base": results([True, True, False]), "sft": results([False, True, True])[1:]})
    assert (report["questions"], report["left_out"]) == (2, 1)
    assert report["policies"]["base"]["accuracy"]["mean"] == 0.5
    assert report["pairs"][0]["lost"] == []


def test_the_order_of_the_results_plays_no_part():
    right = [True, False, True]
    assert compare({"a": results(right), "b": results(right)[::-1]})["pairs"][0]["p_value"] == 1.0
