from fractions import Fraction
from random import Random

import pytest
from reference_parser import is_true, parse, statements, value

from lit_rl.tasks.infix import OPERATORS, Grammar, Node, generate
from lit_rl.tasks.scratchpad import steps


def node_of(text: str) -> Node:
    return as_node(parse(text))


def as_node(tree: Fraction | tuple) -> Node:
    if isinstance(tree, Fraction):
        return Node("", (), tree)
    return Node(tree[0], tuple(map(as_node, tree[1:])), value(tree))


@pytest.mark.parametrize(
    ("text", "work"),
    [
        ("12+34*5", "34*5=170,12+170=182"),
        ("10-(2+3)", "2+3=5,10-5=5"),
        ("12/(2*3)", "2*3=6,12/6=2"),
        ("(1+2)*(3+4)", "1+2=3,3+4=7,3*7=21"),
        ("1-45", "1-45=-44"),
        ("-9-5", "-9-5=-14"),
        ("5--3", "5--3=8"),
        ("1/3*2", "1/3=1/3,(1/3)*2=2/3"),
        ("5-1/-3", "1/-3=-1/3,5-(-1/3)=16/3"),
        ("max(1/2,3)+1", "1/2=1/2,max(1/2,3)=3,3+1=4"),
        ("abs(prev(-4))", "prev(-4)=-5,abs(-5)=5"),
        ("-7%3", "-7%3=2"),
    ],
)
def test_one_statement_per_operator(text, work):
    assert steps(node_of(text)) == work


@pytest.mark.parametrize(
    ("text", "work"),
    [
        ("57+68", "7+8=15,5+6+1=12,57+68=125"),
        ("52-38", "12-8=4,4-3=1,52-38=14"),
        ("12+34", "2+4=6,1+3=4,12+34=46"),
        ("8+57", "8+7=15,5+1=6,8+57=65"),
        ("199+2", "9+2=11,9+1=10,1+1=2,199+2=201"),
        ("100-7", "10-7=3,10-1=9,1-1=0,100-7=93"),
        ("105-38", "15-8=7,9-3=6,1-1=0,105-38=67"),
        ("38-52", "12-8=4,4-3=1,52-38=14,38-52=-14"),
        ("-38+52", "12-8=4,4-3=1,52-38=14,-38+52=14"),
        ("-57+-68", "7+8=15,5+6+1=12,57+68=125,-57+-68=-125"),
        ("52--38", "2+8=10,5+3+1=9,52+38=90,52--38=90"),
        ("-52-38", "2+8=10,5+3+1=9,52+38=90,-52-38=-90"),
        ("0-57", "7-0=7,57-0=57,0-57=-57"),
        ("5--3", "5--3=8"),
        ("57*68", "57*68=3876"),
        ("57+1/2", "1/2=1/2,57+(1/2)=115/2"),
    ],
)
def test_columns(text, work):
    assert steps(node_of(text), columns=True) == work


def test_little_order_holds_in_every_statement():
    assert steps(node_of("57+68"), "little", columns=True) == "7+8=51,5+6+1=21,75+86=521"


@pytest.mark.parametrize(
    ("operators", "order", "columns"),
    [(OPERATORS, "big", False), (OPERATORS, "little", True), (("+", "-"), "big", True)],
    ids=["all", "little-columns", "columns"],
)
def test_every_statement_is_true_and_the_last_gives_the_value(operators, order, columns):
    rng = Random(0)
    grammar = Grammar(operators, max_digits=3, max_depth=3 if operators == OPERATORS and not columns else 1)
    for _ in range(2_000):
        node = generate(grammar, rng)
        work = statements(steps(node, order, columns))
        assert all(is_true(statement, order) for statement in work), work
        assert value(parse(work[-1].split("=")[1], order)) == node.value, work
