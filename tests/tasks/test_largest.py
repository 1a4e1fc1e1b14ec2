"""Questions for the largest number: right answers, sets that never meet, the same questions in every process."""

import re

import pytest

from lit_rl.tasks.largest import LargestNumberProblems, NumberList


def problems(split="train", size=300, seed=0, **grammar):
    return LargestNumberProblems(NumberList(**grammar), size, seed, write=lambda question: question, split=split)


def numbers(sample):
    return [int(number) for number in re.findall(r"\d+", sample.prompt)]


def test_the_completion_is_the_largest_number_of_the_question():
    for sample in problems():
        assert int(sample.completion) == max(numbers(sample))
        assert sample.reference == sample.completion


def test_a_question_holds_different_numbers_of_the_digits_asked_for():
    for sample in problems(count=3, digits=2):
        assert len(set(numbers(sample))) == 3
        assert all(10 <= number <= 99 for number in numbers(sample))


def test_the_sets_share_no_question():
    train, val, test = (
        {sample.prompt for sample in problems(split, 300, count=2, digits=2)} for split in ("train", "val", "test")
    )
    assert min(map(len, (train, val, test))) > 200
    assert not train & (val | test)
    assert not val & test


def test_a_question_is_a_function_of_seed_and_index():
    assert problems(seed=3)[7] == problems(seed=3)[7]
    assert problems(seed=3)[7].prompt != problems(seed=4)[7].prompt


def test_lists_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"^NumberList count=10: there are not as many numbers of 1 digits\.$"):
        NumberList(count=10, digits=1)
    with pytest.raises(ValueError, match=r"^NumberList count=1 digits=3: write at least 2 numbers of 1 digit\.$"):
        NumberList(count=1)
