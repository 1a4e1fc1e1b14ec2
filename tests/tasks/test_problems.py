import pytest
from reference_parser import is_true, parse, statements, value

from lit_rl.tasks.infix import OPERATORS, Grammar
from lit_rl.tasks.numbers import read_number
from lit_rl.tasks.problems import ArithmeticProblems, held_out_problems

LOOSE = Grammar(OPERATORS, max_depth=2, spaces=0.25, parentheses=0.15)
SETTINGS = {
    "sums": ArithmeticProblems(Grammar(), 1, 0),
    "sums in columns": ArithmeticProblems(Grammar(max_digits=4), 1, 1, scratchpad="columns"),
    "all operators": ArithmeticProblems(Grammar(OPERATORS, max_depth=3), 1, 2, scratchpad="steps"),
    "loose": ArithmeticProblems(LOOSE, 1, 3, scratchpad="steps"),
    "little": ArithmeticProblems(LOOSE, 1, 4, "little", "columns"),
    "unsigned": ArithmeticProblems(Grammar(("+", "-", "*", "/"), max_depth=2, signed=False), 1, 5),
}


def expression(prompt: str) -> str:
    return prompt.removeprefix("<bos><").split(">", 1)[1].split("<")[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_reference_is_the_value_and_every_statement_is_true(name):
    problems = SETTINGS[name]
    order = problems.digit_order
    for index in range(2_000):
        sample = problems[index]
        work, *answer = sample.completion.split("<answer>")
        assert value(parse(expression(sample.prompt), order)) == read_number(sample.reference, order), sample
        if answer:
            assert all(is_true(statement, order) for statement in statements(work)), sample
            assert work.split("=")[-1] == answer[0] == sample.reference, sample
        else:
            assert work == sample.reference, sample


@pytest.mark.parametrize(
    ("order", "scratchpad", "prompt_end", "separators"),
    [("big", "none", "<answer>", 0), ("little", "steps", "<scratchpad>", 1)],
)
def test_layout(order, scratchpad, prompt_end, separators):
    sample = ArithmeticProblems(Grammar(), 1, 0, order, scratchpad)[0]
    assert sample.prompt.startswith(f"<bos><{order}>")
    assert sample.prompt.endswith(prompt_end)
    assert sample.completion.count("<answer>") == separators
    assert "<eos>" not in sample.completion


def test_fraction_answers_are_written_exactly():
    problems = ArithmeticProblems(Grammar(("/",), max_digits=1, signed=False), 1, 0)
    answers = {expression(sample.prompt): sample.completion for sample in map(problems.__getitem__, range(3_000))}
    assert (answers["1/3"], answers["2/6"], answers["6/3"], answers["0/7"]) == ("1/3", "1/3", "2", "0")


def test_held_out_problems_are_never_given():
    grammar = Grammar(max_digits=1, spaces=0.3, parentheses=0.3)
    samples, keys = held_out_problems(grammar, 300, seed=0)
    trees = {parse(expression(sample.prompt)) for sample in samples}
    assert len(trees) == len(keys) == 300
    # The same seed, and 722 possible problems: without the exclusion hundreds of the draws would be held-out ones.
    problems = ArithmeticProblems(grammar, 2_000, 0, held_out=keys)
    assert trees.isdisjoint(parse(expression(sample.prompt)) for sample in problems)


def test_two_held_out_sets_share_no_problem():
    grammar = Grammar(max_digits=1)
    _, first = held_out_problems(grammar, 200, seed=0)
    _, second = held_out_problems(grammar, 200, seed=0, exclude=first)
    assert len(second) == 200
    assert first.isdisjoint(second)


def test_held_out_set_is_fixed_by_its_seed():
    samples, keys = held_out_problems(LOOSE, 50, 3, "little", "steps")
    assert (samples, keys) == held_out_problems(LOOSE, 50, 3, "little", "steps")
    assert [sample.number for sample in samples] == list(range(50))


def test_grammar_too_small_for_the_held_out_set():
    # next of one digit: ten problems.
    grammar = Grammar(("next",), max_digits=1, signed=False)
    assert len(held_out_problems(grammar, 10, seed=0)[0]) == 10
    with pytest.raises(ValueError, match=r"^The grammar is too small: [^\n]*$"):
        held_out_problems(grammar, 11, seed=0)


def test_grammar_that_is_held_out_entirely():
    grammar = Grammar(("next",), max_digits=1, signed=False)
    _, keys = held_out_problems(grammar, 10, seed=0)
    with pytest.raises(ValueError, match="too small"):
        ArithmeticProblems(grammar, 5, 0, held_out=keys)[0]


@pytest.mark.parametrize(("argument", "bad"), [("digit_order", "middle"), ("scratchpad", "yes")], ids=lambda item: str(item))
def test_bad_argument_is_named(argument, bad):
    arguments = {"grammar": Grammar(), "size": 1, "seed": 0, argument: bad}
    with pytest.raises(ValueError, match=rf"^ArithmeticProblems {argument}=.*: write [^\n]*\.$"):
        ArithmeticProblems(**arguments)
