"""Reverse Polish notation: expressions drawn fairly, true derivations, what a true step is, and the tokenizer."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from lit_rl.models.loading import TASK_TOKENIZERS
from lit_rl.tasks.rpn import (
    RPNGrammar,
    derivation,
    generate,
    is_step,
    read_prompt,
    read_steps,
    reduce_once,
    write_prompt,
    write_steps,
)
from lit_rl.tasks.tokenizers import rpn_tokenizer

GRAMMARS = [
    RPNGrammar(),
    RPNGrammar(2, ("+", "*"), 1, 6),
    RPNGrammar(12, ("-",), 5, 5),
    RPNGrammar(113, ("+", "-", "*"), 1, 8),
]


def words(text: str) -> list[str]:
    return text.split()


def steps(text: str, modulus: int = 13) -> list[str]:
    """The derivation of an expression as texts."""
    return [" ".join(expression) for expression in derivation(words(text), modulus)]


def step(before: str, after: str, modulus: int = 13) -> bool:
    return is_step(words(before), words(after), modulus)


def stack_value(expression: list[str], modulus: int) -> int:
    """The value by a stack of integers, without any step in between taken modulo anything; an independent reference."""
    stack: list[int] = []
    for word in expression:
        if word.isdigit():
            stack.append(int(word))
            continue
        second, first = stack.pop(), stack.pop()
        stack.append({"+": first + second, "-": first - second, "*": first * second}[word])
    (value,) = stack
    return value % modulus


def shape(expression: list[str]) -> str:
    return "".join("x" if word.isdigit() else "o" for word in expression)


def draws(grammar: RPNGrammar, count: int) -> list[list[str]]:
    rng = Random(0)
    return [generate(grammar, rng) for _ in range(count)]


def is_fair(counts: Counter, kinds: int, total: int) -> bool:
    """Whether all kinds are there and each within five standard deviations of its equal share."""
    mean = total / kinds
    deviation = (mean * (1 - 1 / kinds)) ** 0.5
    return len(counts) == kinds and all(abs(count - mean) <= 5 * deviation for count in counts.values())


# --- expressions -----------------------------------------------------------------------------------------------------


def test_all_trees_of_a_size_are_equally_likely():
    for operations, shapes in [(1, 1), (2, 2), (3, 5), (4, 14)]:  # Catalan numbers
        grammar = RPNGrammar(min_operations=operations, max_operations=operations)
        assert is_fair(Counter(map(shape, draws(grammar, 5000))), shapes, 5000), operations


def test_the_number_of_operations_is_uniform_in_its_range():
    lengths = Counter(
        (len(expression) - 1) // 2 for expression in draws(RPNGrammar(min_operations=2, max_operations=5), 10_000)
    )
    assert sorted(lengths) == [2, 3, 4, 5]
    assert is_fair(lengths, 4, 10_000)


def test_operands_and_operators_are_uniform():
    drawn = [word for expression in draws(RPNGrammar(13, ("+", "-", "*"), 1, 1), 9000) for word in expression]
    operands = Counter(word for word in drawn if word.isdigit())
    assert sorted(map(int, operands)) == list(range(13))
    assert is_fair(operands, 13, 18_000)
    assert is_fair(Counter(word for word in drawn if not word.isdigit()), 3, 9000)


def test_only_the_named_operators_are_drawn():
    drawn = {word for expression in draws(RPNGrammar(operators=("-",)), 200) for word in expression}
    assert {word for word in drawn if not word.isdigit()} == {"-"}


def test_a_bad_grammar_is_refused_in_one_line():
    for options, message in [
        ({"modulus": 1}, "RPNGrammar modulus=1: write 2 or more."),
        ({"operators": ["+", "/"]}, "RPNGrammar operators=['+', '/']: write one or more of + - *."),
        ({"operators": []}, "RPNGrammar operators=[]: write one or more of + - *."),
        ({"min_operations": 0}, "RPNGrammar min_operations=0: write 1 or more."),
        ({"min_operations": 4}, "RPNGrammar max_operations=3: write min_operations=4 or more."),
    ]:
        with pytest.raises(ValueError, match="RPNGrammar") as refusal:
            RPNGrammar(**options)
        assert str(refusal.value) == message


def test_a_list_of_operators_leaves_the_grammar_hashable():
    assert hash(RPNGrammar(operators=["+", "-"])) == hash(RPNGrammar(operators=("+", "-")))


# --- derivations -----------------------------------------------------------------------------------------------------


def test_derivations_by_hand():
    for text, derived in [
        ("2 3 +", ["5"]),
        ("2 3 + 4 +", ["5 4 +", "9"]),
        ("2 3 4 + +", ["2 7 +", "9"]),
        ("2 3 + 4 5 + +", ["5 9 +", "1"]),  # both triples in one pass; 14 = 1 mod 13
        ("3 5 -", ["11"]),  # -2
        ("5 3 -", ["2"]),
        ("7 8 *", ["4"]),  # 56 = 4 * 13 + 4
        ("0 0 -", ["0"]),
        ("2 3 + 4 - 5 *", ["5 4 - 5 *", "1 5 *", "5"]),
    ]:
        assert steps(text) == [text, *derived]


def test_the_modulus_need_not_be_prime():
    assert steps("4 3 *", modulus=12) == ["4 3 *", "0"]


def test_results_of_a_pass_take_no_part_in_it():
    # 2 3 + gives 5, which would make 5 4 + ready, which would make the next ready.
    assert reduce_once(words("2 3 + 4 + 6 +"), 13) == words("5 4 + 6 +")


def test_nothing_ready_stays_as_it_is():
    for text in ("5", "", "2 3", "+ 2 3", "2 +", "13 1 +", "02 3 +"):
        assert reduce_once(words(text), 13) == words(text)


def test_a_derivation_ends_in_the_value_by_true_steps():
    for grammar in GRAMMARS:
        for expression in draws(grammar, 200):
            expressions = derivation(expression, grammar.modulus)
            assert expressions[0] == expression
            assert expressions[-1] == [str(stack_value(expression, grammar.modulus))]
            for before, after in pairwise(expressions):
                assert stack_value(after, grammar.modulus) == stack_value(before, grammar.modulus)
                assert is_step(before, after, grammar.modulus)


# --- what a true step is ---------------------------------------------------------------------------------------------


def test_any_of_the_ready_triples_may_be_reduced():
    for after in ("5 4 5 + +", "2 3 + 9 +", "5 9 +"):
        assert step("2 3 + 4 5 + +", after), after


def test_what_is_not_a_step():
    for before, after in [
        ("2 3 + 4 5 + +", "2 3 + 4 5 + +"),  # nothing done
        ("2 3 + 4 5 + +", "5 8 +"),  # one value is false
        ("2 3 + 4 5 + +", "9 5 +"),  # exchanged
        ("2 3 + 4 5 + +", "1"),  # what two steps give
        ("2 3 + 4 5 + +", "5 9"),
        ("2 3 + 4 5 + +", "5 9 + +"),
        ("2 3 + 4 5 + +", "5 9 -"),
        ("2 3 + 4 5 + +", ""),
        ("2 3 + 4 +", "9"),  # chained
        ("2 3 + 4 +", "2 7 +"),  # 3 4 + is no triple of it
        ("8 8 +", "16"),  # not reduced by 13
        ("3 5 -", "-2"),
        ("2 3 +", "05"),
        ("2 3 +", "5 5"),
        ("0", "0"),
        ("0", ""),
        ("", ""),
    ]:
        assert not step(before, after), (before, after)


def test_a_triple_that_begins_with_its_own_value_is_told_by_what_follows():
    # `2 0 +` at the start of the step is the triple left alone, or its value 2 and the words after it.
    assert step("2 0 + 0 +", "2 0 +")
    assert not step("2 0 + 0 +", "2")


def test_every_subset_of_ready_triples_is_a_step_and_no_other_is():
    before = words("2 0 + 0 3 * + 4 0 - *")
    ready = {0: "2", 3: "0", 7: "4"}
    reachable = set()
    for chosen in range(1, 8):
        after, place = [], 0
        while place < len(before):
            reduce = place in ready and chosen >> list(ready).index(place) & 1
            after.append(ready[place] if reduce else before[place])
            place += 3 if reduce else 1
        reachable.add(tuple(after))
    assert len(reachable) == 7
    assert all(is_step(before, list(after), 13) for after in reachable)
    # Every text that leaves out words of these, so that none is a step by its length alone.
    for after in reachable:
        for place in range(len(after)):
            shorter = after[:place] + after[place + 1 :]
            assert is_step(before, list(shorter), 13) is (shorter in reachable)


def test_a_long_chain_of_ambiguous_triples_is_judged_at_once():
    triples = words("2 0 +") * 200
    assert is_step(triples, ["2"] * 200, 13)
    assert not is_step(triples, ["2"] * 199 + ["3"], 13)


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_text_of_a_problem():
    expression, *rest = derivation(words("2 3 + 4 +"), 13)
    assert write_prompt(expression) == "<boe> 2 3 + 4 +"
    assert write_steps(rest) == "= 5 4 + = 9"
    assert read_prompt("<boe> 2 3 + 4 +") == expression
    assert read_steps("= 5 4 + = 9") == rest


def test_steps_are_read_as_they_are_written():
    for text, expressions in [
        ("", []),
        ("9", []),
        ("5 4 + = 9", []),
        (" = 9", []),
        ("=9", []),
        ("=", [[]]),
        ("= = 9", [[], ["9"]]),
        ("= 9 =", [["9"], []]),
        ("=  9", [["", "9"]]),
        ("= 9 ", [["9", ""]]),
    ]:
        assert read_steps(text) == expressions, text


# --- tokenizer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return rpn_tokenizer(13)


def test_the_ids_are_control_tokens_operands_operators_and_the_equals_sign(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("<pad> <boe> <eoe> 0 12 + - * =")["input_ids"] == [0, 1, 2, 3, 15, 16, 17, 18, 19]
    assert sorted(tokenizer.get_vocab().values()) == list(range(20))


def test_the_policy_knows_the_tokenizers_by_name():
    assert len(TASK_TOKENIZERS["rpn13"]()) == 20
    assert len(TASK_TOKENIZERS["rpn113"]()) == 120


def test_it_pads_on_the_left(tokenizer):
    assert tokenizer(["2", "2 3 +"], padding=True)["input_ids"] == [[0, 0, 5], [5, 6, 16]]


def test_every_problem_survives():
    for grammar in (RPNGrammar(), RPNGrammar(113, ("+", "-", "*"), 1, 8)):
        tokenizer = rpn_tokenizer(grammar.modulus)
        rows = [derivation(expression, grammar.modulus) for expression in draws(grammar, 300)]
        texts = [f"{write_prompt(first)} {write_steps(rest)} <eoe>" for first, *rest in rows]
        ids = tokenizer(texts)["input_ids"]
        assert [len(row) for row in ids] == [len(text.split()) for text in texts]
        assert tokenizer.batch_decode(ids) == texts


def test_an_unknown_word_raises(tokenizer):
    for text in ("13", "02", "-1", "2+3", "/", "2\n3", "<bos>", "x"):
        with pytest.raises(Exception, match=r"Missing .* token from the vocabulary"):
            tokenizer(text)


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<boe> 2 3 + 4 + = 5 4 + = 9 <eoe>"
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.padding_side, loaded.eos_token_id, loaded.pad_token_id) == ("left", 2, 0)
