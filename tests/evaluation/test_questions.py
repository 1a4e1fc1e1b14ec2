"""Answers that an evaluation keeps, on completions written by hand."""

import pytest
from tiny_rollouts import completions_of

from lit_rl.evaluation.questions import QuestionEvaluation
from lit_rl.rewards import FinalNumber
from lit_rl.types import Sample

THREE = Sample("What is 1+2?<answer>", "", "3", 7, question="What is 1+2?")
QUOTED = Sample("Write the answer as #### 42.\nWhat is 40+2?", "", "42", 8)


def test_the_greedy_completion_of_each_question_is_kept_with_its_answer():
    evaluation = QuestionEvaluation(correct=FinalNumber())
    evaluation.count(completions_of([THREE, QUOTED], ["1+2 is\n#### 3", "#### 4"], [False, True]))
    three, quoted = evaluation.results[7], evaluation.results[8]
    assert (three.question, three.reference, three.completion) == ("What is 1+2?", "3", "1+2 is\n#### 3")
    assert (three.answer, three.right, three.truncated, three.tokens) == ("3", True, False, 1)
    assert (quoted.answer, quoted.right, quoted.truncated) == (None, False, True), "a cut number may lack digits"


@pytest.mark.parametrize("fallback", ["none", "last_number"])
def test_the_prompt_is_not_read_for_answers(fallback):
    evaluation = QuestionEvaluation(correct=FinalNumber(fallback=fallback), samples=2)
    evaluation.count(completions_of([QUOTED], ["I do not know."]))
    evaluation.count_samples(completions_of([QUOTED], ["No idea.", "None."]))
    result = evaluation.results[8]
    assert (result.answer, result.right, result.vote, result.vote_right) == (None, False, None, False)
    assert result.sampled_answers == [None, None]
    assert result.sampled_right == [False, False]


def test_samples_of_a_question_vote():
    evaluation = QuestionEvaluation(correct=FinalNumber(), samples=3)
    texts = ["#### 3", "#### 3.0", "#### 4", "#### 41", "no", "#### 42"]
    evaluation.count_samples(completions_of([THREE, QUOTED], texts))
    three, quoted = evaluation.results[7], evaluation.results[8]
    assert (three.sampled_answers, three.sampled_right) == (["3", "3", "4"], [True, True, False])
    assert (three.vote, three.vote_right) == ("3", True)
    assert (quoted.vote, quoted.vote_right) == ("41", False), "of equal votes the earliest"


def test_two_questions_of_one_number_are_refused():
    evaluation = QuestionEvaluation(correct=FinalNumber())
    other = THREE._replace(question="What is 2+1?")
    with pytest.raises(ValueError, match="two questions have the number 7"):
        evaluation.count(completions_of([THREE, other], ["3", "3"]))


def test_an_evaluation_that_generates_nothing_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens is 0, which generates nothing to compare"):
        QuestionEvaluation(max_new_tokens=0)
