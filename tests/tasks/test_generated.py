"""Generated problems: item access that arithmetic and reverse Polish notation share."""

import dataclasses

import pytest

from lit_rl.tasks import Grammar, RPNGrammar
from lit_rl.tasks.infix import OPERATORS
from lit_rl.tasks.problems import ArithmeticProblems
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems
from lit_rl.types import Sample

LOOSE = Grammar(OPERATORS, max_depth=2, spaces=0.3)
RPN = RPNGrammar(13, ("+", "-"), 1, 5)


def test_items_are_the_same_in_every_process():
    # A seed that Python hashes would give other items in nearly every process.
    arithmetic = ArithmeticProblems(LOOSE, 10, 7, scratchpad="steps")
    assert arithmetic[1] == Sample("<bos><big>-7 % -1<scratchpad>", "-7%-1=0<answer>0", "0", 1)
    assert arithmetic[49] == Sample("<bos><big>2/ abs( -3)<scratchpad>", "abs(-3)=3,2/3=2/3<answer>2/3", "2/3", 49)
    assert RPNProblems(RPN, 50, 7)[49] == Sample("<boe> 2 8 - 9 +", "= 7 9 + = 3", "3", 49)
    assert held_out_problems(RPN, 2, "val")[1] == Sample("<boe> 0 7 + 10 3 - 5 - -", "= 7 7 5 - - = 7 2 - = 5", "5", 1)


def test_items_do_not_depend_on_what_was_drawn_before():
    problems = ArithmeticProblems(LOOSE, 5, 0)
    later = problems[40]
    assert [problems[index] for index in range(41)][40] == later


def test_index_past_the_size_is_a_problem():
    assert ArithmeticProblems(Grammar(), 5, 0)[10**12].number == 10**12


def test_negative_index_is_refused():
    for problems in (ArithmeticProblems(Grammar(), 5, 0), RPNProblems(RPN, 5, 0)):
        with pytest.raises(IndexError, match=rf"^{type(problems).__name__} index=-1: write 0 or more"):
            problems[-1]


def test_size_below_one_is_refused():
    for build in (lambda: ArithmeticProblems(Grammar(), 0, 0), lambda: RPNProblems(RPN, 0, 0)):
        with pytest.raises(ValueError, match=r"Problems size=0: write 1 or more\.$"):
            build()


def test_iteration_ends_at_the_size():
    problems = ArithmeticProblems(Grammar(), 5, 0)
    assert len(problems) == 5
    assert [sample.number for sample in problems] == [0, 1, 2, 3, 4]


def test_seeds_give_different_problems():
    first, second = (ArithmeticProblems(Grammar(max_digits=6), 100, seed) for seed in (0, 1))
    assert not {sample.prompt for sample in first} & {sample.prompt for sample in second}


def test_new_grammar_holds_for_later_items():
    problems = ArithmeticProblems(Grammar(), 200, 0)
    deeper = dataclasses.replace(problems.grammar, max_depth=2)
    problems.grammar = deeper
    assert list(problems) == list(ArithmeticProblems(deeper, 200, 0))


def test_distinct_problems_repeat_none_that_is_taken():
    # The successors of ten one-digit numbers, two of them taken.
    grammar = Grammar(("next",), max_digits=1, signed=False)
    problems = ArithmeticProblems(grammar, 8, 0, held_out=frozenset({"next(3)", "next(7)"}))
    assert set(problems.distinct()) == {f"next({number})" for number in (0, 1, 2, 4, 5, 6, 8, 9)}
    problems.size = 9
    with pytest.raises(ValueError, match=r"^The grammar is too small: 1000 draws for problem 8 gave no new one; [^\n]*$"):
        problems.distinct()
