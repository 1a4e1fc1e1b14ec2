"""Changed questions: the right answer is computed where the solution tells how, and not known anywhere else."""

from fractions import Fraction
from random import Random

import pytest

from lit_rl.tasks.changed_questions import change_question, evaluate

APPLES = "Ann has 23 apples and gives 8 away. How many are left?"
CLIPS = "Natalia sold clips to 48 of her friends in April, and half as many in May. How many did she sell?"


def changes(question: str, solution: str = "", reference: str = "15"):
    return [change_question(question, solution, reference, Random(seed)) for seed in range(40)]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace("?", "").replace(".", "").split() if word.isdigit()]


def test_the_answer_to_a_changed_question_is_computed_from_the_solution():
    for changed in changes(APPLES, "She has 23-8=<<23-8=15>>15 left.\n#### 15"):
        had, gave = numbers(changed.question)
        assert changed.answer == had - gave > 0
        assert (had, gave) != (23, 8)
        assert 23 in (had, gave) or 8 in (had, gave)


def test_results_are_carried_on_and_stay_whole():
    found = changes(CLIPS, "She sold 48/2 = 24 clips in May.\nTogether 48 + 24 = 72 clips.\n#### 72", "72")
    assert len({changed.question for changed in found}) > 10
    for changed in found:
        [friends] = numbers(changed.question)
        assert friends % 2 == 0
        assert changed.answer == friends * 3 / 2


@pytest.mark.parametrize(
    ("question", "solution", "reference"),
    [
        (APPLES, "", "15"),
        (APPLES, "23-8 = 16\n#### 15", "15"),  # a wrong calculation
        (APPLES, "23-8 = 15\n#### 16", "16"),  # the last result is another number
        (APPLES, "8 of them go. 40-25 = 15\n#### 15", "15"),  # numbers that come from nowhere
        ("Ann has 23 apples, gives 8 away and gets 23. How many?", "23-8 = 15\n15+23 = 38\n#### 38", "38"),  # which 23?
        ("Ann has 23 pens at $1.50. Ben has 8 less. How many?", "23-8 = 15\n15*23 = 345\n#### 15", "15"),
    ],
)
def test_without_a_sure_calculation_the_answer_is_not_known(question, solution, reference):
    found = changes(question, solution, reference)
    assert all(changed.question != question for changed in found)
    sure = [changed for changed in found if changed.answer is not None]
    # Of the question with 23 twice the 8 may be changed.
    assert all(8 not in numbers(changed.question) for changed in sure)
    assert not sure or "gets 23" in question


def test_a_result_that_happens_to_equal_a_given_number_is_not_carried_on():
    question = "Ann has 16 pens and gives 8 to Ben, who had 8. How many has Ben?"
    assert {each.answer for each in changes(question, "She gives 16-8 = 8. He has 8+8 = 16.\n#### 16", "16")} == {None}


def test_a_number_that_a_word_of_the_question_says_too_is_not_changed():
    question = "Twelve friends buy 12 pens each and give 9 away. How many pens?"
    for changed in changes(question, "12*12 = 144\n144-9 = 135\n#### 135", "135"):
        assert changed.answer is None or (changed.answer == 144 - numbers(changed.question)[-1])


def test_a_story_has_an_answer_without_a_solution():
    question = "Mia has 12 shells. Ben gives her 5 more. How many shells does Mia have now?"
    for changed in changes(question):
        assert changed.answer == sum(numbers(changed.question))


def test_a_question_without_a_number_is_left():
    assert change_question("How many apples are left? 1 of 1?", "", "0", Random(0)) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("( 2 + 3 ) * 4", 20),
        ("8 - 3 - 2", 3),
        ("8 / 4 / 2", 1),
        ("- 3 + 5", 2),
        ("1 / 3", Fraction(1, 3)),
        ("2 3", None),
        ("( 2", None),
        ("2 +", None),
        ("2 / 0", None),
        (")", None),
        ("", None),
    ],
)
def test_the_value_of_an_expression(text, value):
    assert evaluate([Fraction(part) if part.isdigit() else part for part in text.split()]) == value
