from fractions import Fraction
from random import Random

import pytest
from reference_parser import parse, value

from lit_rl.tasks.infix import OPERATORS, Grammar, Node, canonical, generate, show

GRAMMARS = {
    "sums": (Grammar(), "big"),
    "all": (Grammar(OPERATORS, max_depth=3), "big"),
    "loose": (Grammar(OPERATORS, max_depth=2, spaces=0.25, parentheses=0.15), "big"),
    "little": (Grammar(("+", "-", "*", "/", "max"), max_digits=3, max_depth=2, spaces=0.5), "little"),
    "unsigned": (Grammar(("+", "-", "*", "/", "%"), max_digits=1, max_depth=2, signed=False), "big"),
}


def literal(number: int) -> Node:
    return Node("", (), Fraction(number))


def as_tuples(node: Node) -> Fraction | tuple:
    return (node.operator, *map(as_tuples, node.children)) if node.children else node.value


def literals(node: Node) -> list[Fraction]:
    return [number for child in node.children for number in literals(child)] if node.children else [node.value]


@pytest.mark.parametrize("name", GRAMMARS)
def test_printed_text_has_the_tree_and_the_value(name):
    grammar, order = GRAMMARS[name]
    rng = Random(name)
    for _ in range(2_000):
        node = generate(grammar, rng)
        text = show(node, grammar, order, rng)
        tree = parse(text, order)
        assert tree == as_tuples(node), text
        assert value(tree) == node.value, text


@pytest.mark.parametrize(
    ("outer", "inner", "first", "numbers", "text", "result"),
    [
        ("-", "+", 10, (2, 3), "10-(2+3)", 5),
        ("/", "*", 12, (2, 3), "12/(2*3)", 2),
        ("+", "-", 1, (2, 3), "1+(2-3)", 0),
        ("*", "%", 4, (7, -3), "4*(7%-3)", -8),  # 7 = -3 * -3 - 2
        ("+", "*", 1, (2, 3), "1+2*3", 7),
        ("*", "+", 2, (3, 4), "2*(3+4)", 14),
        ("-", "max", 1, (2, 3), "1-max(2,3)", -2),
        ("-", "-", 5, (-3, 1), "5-(-3-1)", 9),
    ],
)
def test_right_operand_has_its_parentheses(outer, inner, first, numbers, text, result):
    right = Node(inner, tuple(map(literal, numbers)), Fraction(0))
    assert canonical(Node(outer, (literal(first), right), Fraction(result))) == text
    assert value(parse(text)) == result


def test_left_operand_of_equal_precedence_has_no_parentheses():
    left = Node("-", (literal(10), literal(2)), Fraction(8))
    assert canonical(Node("+", (left, literal(3)), Fraction(11))) == "10-2+3"


def test_left_operand_of_lower_precedence_has_parentheses():
    left = Node("-", (literal(10), literal(-2)), Fraction(12))
    assert canonical(Node("*", (left, literal(3)), Fraction(36))) == "(10--2)*3"


def test_all_spaces_and_parentheses_keep_the_sign_with_its_digits():
    node = Node("-", (literal(5), Node("abs", (literal(-13),), Fraction(13))), Fraction(-8))
    grammar = Grammar(spaces=1, parentheses=1)
    assert show(node, grammar, "little", Random(0)) == "( ( 5 ) - ( abs ( ( -31 ) ) ) )"


def test_without_generator_the_text_is_plain():
    node = Node("+", (literal(5), literal(-3)), Fraction(2))
    assert show(node, Grammar(spaces=1, parentheses=1)) == "5+-3"


class ZerosThenLowest(Random):
    """Draws the lowest integer of each range, except for one 7 after a number of zeros."""

    zeros_left = 0

    def randint(self, a: int, b: int) -> int:
        self.zeros_left -= a == 0
        return 7 if a == 0 and self.zeros_left < 0 else a


@pytest.mark.parametrize(("zeros", "divisor"), [(1, 7), (10, 7), (11, 1)], ids=["first", "last", "replaced"])
def test_zero_divisor_is_drawn_again_ten_times_and_then_replaced(zeros, divisor):
    for operator in ("/", "%"):
        rng = ZerosThenLowest(0)
        rng.zeros_left = 1 + zeros  # the left operand takes the first
        node = generate(Grammar((operator,), max_digits=1, signed=False), rng)
        assert literals(node) == [0, divisor], operator


def test_number_of_digits_is_uniform():
    rng = Random(0)
    numbers = [number for _ in range(10_000) for number in literals(generate(Grammar(max_digits=4), rng))]
    # 20,000 literals, a quarter of each length: 5,000 with a standard deviation of 61.
    counts = [sum(len(str(abs(number))) == digits for number in numbers) for digits in (1, 2, 3, 4)]
    assert all(abs(count - 5_000) < 300 for count in counts)


def test_half_of_the_signed_literals_are_negative():
    rng = Random(0)
    numbers = [number for _ in range(10_000) for number in literals(generate(Grammar(max_digits=1), rng))]
    # 20,000 literals, of which a tenth is zero: 9,000 negative with a standard deviation of 70.
    assert abs(sum(number < 0 for number in numbers) - 9_000) < 350


def test_unsigned_literals_are_not_negative():
    rng = Random(0)
    grammar = Grammar(OPERATORS, max_depth=2, signed=False)
    assert all(min(literals(generate(grammar, rng))) >= 0 for _ in range(1_000))


def test_depth_one_has_one_operator():
    rng = Random(0)
    assert all(not child.children for _ in range(1_000) for child in generate(Grammar(OPERATORS), rng).children)


def test_list_of_operators_is_stored_as_tuple():
    assert hash(Grammar(["+", "max"])) == hash(Grammar(("+", "max")))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("operators", ("+", "^")),
        ("operators", ()),
        ("max_digits", 0),
        ("max_depth", 0),
        ("max_depth", 20),
        ("spaces", 1.5),
        ("parentheses", float("nan")),
    ],
)
def test_bad_field_is_named_in_one_line(field, bad):
    with pytest.raises(ValueError, match=rf"^Grammar {field}=.*: write [^\n]*\.$"):
        Grammar(**{field: bad})
