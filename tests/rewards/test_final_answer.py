"""Final answers: numbers by exact value after the last marker, expressions by their mathematics, from completions alone."""

import json
import re
import threading
from fractions import Fraction

import pytest
from math_runs import real_file
from tiny_rollouts import completions_of

from lit_rl.rewards import FinalNumber, MathAnswer, math_judge
from lit_rl.rewards.final_answer import read_value
from lit_rl.rewards.math_judge import MathJudge, equal_answers
from lit_rl.types import Sample

NUMBER, BOXED = FinalNumber(), MathAnswer()


def problem(reference, prompt="How many? End with #### 42.", number=0):
    return Sample(prompt, "", reference, number)


def right(reward, text, reference):
    sample = problem(reference)
    return reward.is_right(reward.read(text, sample), sample)


# --- FinalNumber -----------------------------------------------------------------------------------------------------

VALUES = {
    "1,000": 1000,
    "12,345,678": 12345678,
    "42.": 42,
    " $18": 18,
    "-3": -3,
    "-$3": -3,
    "$-3": -3,
    "+3": 3,
    "3.50": Fraction(7, 2),
    "3.141": Fraction(3141, 1000),
    "0.125": Fraction(1, 8),
    ".5": Fraction(1, 2),
    "1/2": Fraction(1, 2),
    "1,000.25": Fraction(4001, 4),
    "007": 7,
    "18 dollars": 18,
    "60%": 60,
    "$18$.\n": 18,
    "**42**": 42,
    "42 m²": 42,
    "42 m^2": 42,
    r"42 \text{ cm}^2": 42,
    "\N{MINUS SIGN}42": -42,
    "€42": 42,
    r"\$42": 42,
    r"\boxed{42}": 42,
    "The answer is 42": 42,
    r"10{,}000": 10000,
    r"10\,000": 10000,
}


def test_a_number_has_the_value_that_it_says():
    assert {text: read_value(text) for text in VALUES} == VALUES


NO_NUMBER = ["", " ", "none", "nan", "inf", "--3", "1/0", "½", "٣", "about 18", "9" * 2000]
TWO_NUMBERS = ["5 - 3", "5-3", "1e1", "1,00", "1,0000", "1.000,50", "2 1/2", "2½", "1/2/3", "3.4.5", "18\nNo, it is 19"]
TWO_NUMBERS += ["5$3", "5**3", r"\boxed{42}^2"]


def test_a_text_that_is_not_one_number_has_no_value():
    for text in NO_NUMBER + TWO_NUMBERS:
        assert read_value(text) is None, text


def test_the_last_marker_of_the_completion_counts():
    assert right(NUMBER, "It is #### 17. No:\n#### 18", "18")
    assert not right(NUMBER, "#### 18\n#### 17", "18")


def test_a_completion_without_the_marker_is_wrong_whatever_the_prompt_quotes():
    assert not right(NUMBER, "The answer is 42.", "42")
    assert NUMBER.read("42", problem("42", prompt="Answer: ####")) is None


def test_another_number_after_the_answer_makes_it_wrong():
    assert not right(NUMBER, "#### 18 or 19", "18")


LAST = {
    "The answer is 42.": 42,
    "3 + 4 = 7": 7,
    r"So \boxed{1,200}.": 1200,
    "The area is 42 m^2.": 42,
    "It loses $5.50!": Fraction(11, 2),
    "Between 5 - 3": None,
    "From 5-3": None,
    "No number.": None,
}


def test_the_last_number_answers_for_models_that_were_never_taught_the_marker():
    untaught = FinalNumber(fallback="last_number")
    assert {text: untaught.read(text, problem("0")) for text in LAST} == LAST
    assert untaught.read("It is 3. #### 4 or 5", problem("0")) is None
    assert {text: NUMBER.read(text, problem("0")) for text in LAST} == dict.fromkeys(LAST)


def test_options_of_the_reader_are_checked():
    with pytest.raises(ValueError, match="fallback is 'first'; write one of none, last_number"):
        FinalNumber(fallback="first")
    with pytest.raises(ValueError, match="marker is empty"):
        FinalNumber(marker="")


# --- thoughts --------------------------------------------------------------------------------------------------------

THOUGHTS = {
    "<think>#### 5 or #### 7</think>#### 42": 42,
    "#### 5</think>It is\n#### 42": 42,
    "<think>#### 42</think>I do not know.": None,
    "<think>So #### 42": None,
    "#### 42<think>or": None,
    "#### 42": 42,
}


def test_an_answer_is_read_after_the_last_thought():
    for text, answer in THOUGHTS.items():
        assert NUMBER.answers(completions_of([problem("42")], [text])) == [answer], text
        boxed = re.sub(r"#### (\d+)", r"\\boxed{\1}", text)
        assert BOXED.answers(completions_of([problem("42")], [boxed])) == [answer and str(answer)], boxed


def test_a_thought_that_the_prompt_opens_must_end():
    opened = problem("42", prompt="Go. <think>\n")
    assert NUMBER.answers(completions_of([opened], ["#### 42", "x</think>#### 42"])) == [None, 42]


def test_a_gold_answer_with_thousands_is_compared_by_value():
    assert right(NUMBER, "#### $70000.00", "70,000")
    assert not right(NUMBER, "#### 70", "70,000")


def test_rows_are_judged_by_their_own_sample_and_truncated_ones_are_wrong():
    samples = [problem("3"), problem("4")]
    rollouts = completions_of(samples, ["#### 3", "#### 4", "#### 4", "#### 4"], [False, False, False, True])
    assert NUMBER.score(rollouts).tolist() == [1, 0, 1, 0]


def test_equal_values_are_one_answer_of_a_majority_vote():
    rollouts = completions_of([problem("7")], ["#### 1,000", "#### $1000."])
    assert len(set(NUMBER.answers(rollouts))) == 1


def test_a_reference_that_is_not_a_number_is_refused_by_its_sample():
    with pytest.raises(ValueError, match=r"reference 'x\+1' of sample 5 is not a number.*MathAnswer"):
        NUMBER.is_right(Fraction(1), problem("x+1", number=5))


@pytest.mark.parametrize(("name", "count"), [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)])
def test_the_gold_of_every_real_solution_is_read(name, count):
    with open(real_file(name), encoding="utf-8") as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    golds = [int(solution.split("\n#### ")[1].replace(",", "")) for solution in solutions]
    read = [NUMBER.read(solution, problem("0")) for solution in solutions]
    assert sum(answer == gold for answer, gold in zip(read, golds, strict=True)) == len(golds) == count


# --- MathAnswer -------------------------------------------------------------------------------------------------------


EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    ("x+1", "1+x"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    ("(1,2)", "(1, 2)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1000", "1,000"),
    ("5", "x=5"),
]
UNEQUAL = [("5", "6"), (r"\frac{1}{2}", "1"), ("(1,2)", "(2,1)"), ("5", "5, 6"), ("x", ""), ("3", r"\{")]


def test_equal_expressions_are_right():
    for reference, answer in EQUAL:
        assert right(BOXED, rf"So \boxed{{{answer}}}.", reference), answer


def test_other_expressions_are_wrong():
    for reference, answer in UNEQUAL:
        assert not right(BOXED, rf"So \boxed{{{answer}}}.", reference), answer


def test_the_last_box_counts_and_its_braces_balance():
    assert BOXED.read(r"\boxed{1} and \boxed{\frac{1}{\sqrt{2}}}.", problem("1")) == r"\frac{1}{\sqrt{2}}"
    assert BOXED.read("The answer is 1.", problem("1")) is None


def test_boxes_of_a_list_are_one_answer_if_the_reference_has_several_values():
    for text in (r"\boxed{1} and \boxed{2}.", r"$\boxed{2}$, $\boxed{1}$", r"\boxed{1}\text{ or }\boxed{2}", r"\boxed{1,2}"):
        for reference in ("1, 2", r"\{1,2\}", "1 and 2"):
            assert right(BOXED, text, reference), (text, reference)
    assert not right(BOXED, r"\boxed{1} and \boxed{3}", "1, 2")
    assert not right(BOXED, r"\boxed{1}. Hence \boxed{2}", "1, 2")
    assert right(BOXED, r"\boxed{1} and \boxed{2}", "2")  # one value: the last box counts


def test_a_full_stop_in_the_box_costs_nothing():
    assert BOXED.read(r"\boxed{x+1.}", problem("1")) == "x+1"
    assert right(BOXED, r"\boxed{10{,}000.}", "10000")
    assert right(BOXED, r"\boxed{\frac{1}{\sqrt{n}}}", r"\sqrt{\frac{1}{n}}")


def test_equal_texts_are_equal_even_if_no_judge_can_read_them():
    text = r"\text{the prime numbers} \{" + "p" * 2000
    assert equal_answers(text, text)
    assert not equal_answers(text, text + "p")


def test_an_answer_that_takes_for_ever_is_wrong_and_another_judge_is_started_for_the_next_one():
    judge = MathJudge(seconds=2.0)
    assert not judge.equal("5", "9^{9^{9^{9^{9}}}}-9^{9^{9^{9^{9}}}}+9^{9^{9}}")
    assert judge.equal("5", "2+3")


def test_answers_are_judged_in_a_thread_too():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(equal_answers(r"\frac{3}{6}", "0.5")))
    thread.start()
    thread.join()
    assert verdicts == [True]


def test_a_judge_that_was_killed_is_started_again():
    assert equal_answers("1", "1.0")
    math_judge._JUDGE._process.kill()
    math_judge._JUDGE._process.wait()
    assert equal_answers("1", "1.00")


def test_a_judge_that_does_not_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="math-verify does not start"):
        MathJudge().equal("1", "2")


def test_what_a_policy_writes_is_never_run(tmp_path):
    file = tmp_path / "made"
    right(BOXED, rf"\boxed{{__import__('pathlib').Path('{file}').touch()}}", "5")
    assert not file.exists()
