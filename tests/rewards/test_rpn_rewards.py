"""Rewards of modular arithmetic: what earns one, what tries to and does not, and what the seed's rewards got wrong."""

import pytest
import torch
from tiny_rollouts import completions_of

from lit_rl.rewards import RPNAnswer, RPNFormat, RPNProgress, RPNReward
from lit_rl.rewards.base import score_rollouts
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.renderer import Renderer
from lit_rl.tasks.rpn import RPNGrammar
from lit_rl.tasks.rpn_problems import RPNProblems
from lit_rl.tasks.tokenizers import rpn_tokenizer
from lit_rl.types import Sample

TWO_STEPS = Sample("<boe> 2 3 + 4 +", "= 5 4 + = 9", "9", 7)
ONE_STEP = Sample("<boe> 2 3 +", "= 5", "5", 8)
ZERO = Sample("<boe> 6 7 + 0 +", "= 0 0 + = 0", "0", 9)
PAIR = Sample("<boe> 2 3 + 4 5 + +", "= 5 9 + = 1", "1", 10)
FORMLESS = [
    "",
    " ",
    "=",
    "9",
    "= ",
    "= 9 ",
    " = 9",
    "=9",
    "=  9",
    "= 9 =",
    "= = 9",
    "= 9 9",
    "= 9 = 9",
    "= 8 = 9",
    "= 9 = 5 4 + = 9",
    "5 4 + = 9",
    "2 3 + 4 + = 5 4 + = 9",
    "<boe> 2 3 + 4 + = 5 4 + = 9",
    "= 5 4 + = <boe> 9",
    "= 5 4 + = 9 <eoe>",
    "= 5 4 + = 9 <eoe> <eoe>",
    "= 9 <eoe> = 9",
    "= 5 <eoe> 4 + = 9",
    "<pad> = 5 4 + = 9",
    "= 5 <pad> 4 + = 9",
    "= 5 4 + = 9 <pad>",
    "= 5 4 + = 9 +",
    "= 5 4 + = 9 and more",
    "= 5 4 + = 09",
    "= 5 4 + = 007",
    "= 13",
    "= 22",
    "= -4",
    "= +9",
    "= 9.0",
    "= nan",
    "= +",
    "= \u0669",
    "= 5 4 + = 9\n",
    "= 5\n4 + = 9",
    "= 05 4 + = 9",
    "= 18 4 + = 9",
    "= " + "9" * 10_000,
]


def paid(reward, text: str, sample: Sample = TWO_STEPS, truncated: bool = False) -> float:
    rollouts = completions_of([sample], [text], [truncated])
    score_rollouts(reward, rollouts)
    return float(rollouts.rewards)


# --- RPNFormat -----------------------------------------------------------------------------------------------------------


def test_one_value_at_the_end_has_the_format():
    texts = ["= 9", "= 0", "= 12", "= 5 4 + = 9", "= 5 4 + = 8", "= 2 3 + 4 + = 5 4 + = 9", "= + + = 9"]
    assert RPNFormat().score(completions_of([TWO_STEPS], texts)).tolist() == [1.0] * len(texts)


def test_everything_else_has_not_and_is_no_answer():
    rollouts = completions_of([TWO_STEPS], FORMLESS)
    for reward in (RPNFormat(), RPNAnswer(derivation=False), RPNAnswer(), RPNReward()):
        paid = dict(zip(FORMLESS, reward.score(rollouts).tolist(), strict=True))
        assert paid == dict.fromkeys(FORMLESS, 0.0), type(reward).__name__


def test_a_truncated_completion_has_no_format():
    assert paid(RPNFormat(), "= 5 4 + = 9", truncated=True) == 0
    assert paid(RPNAnswer(), "= 5 4 + = 9", truncated=True) == 0
    assert paid(RPNAnswer(derivation=False), "= 9", truncated=True) == 0


def test_the_modulus_bounds_the_value():
    assert [paid(RPNFormat(113), text) for text in ("= 112", "= 113")] == [1, 0]
    assert [paid(RPNFormat(7), text) for text in ("= 6", "= 7")] == [1, 0]


# --- RPNAnswer ---------------------------------------------------------------------------------------------------


WHOLE = [
    (TWO_STEPS, "= 5 4 + = 9"),
    (ONE_STEP, "= 5"),
    (ZERO, "= 0 0 + = 0"),
    (PAIR, "= 5 9 + = 1"),
    (PAIR, "= 5 4 5 + + = 5 9 + = 1"),  # one triple at a time
    (PAIR, "= 2 3 + 9 + = 5 9 + = 1"),
]
OTHER_WAYS = [
    (TWO_STEPS, "= 9"),  # in one step
    (TWO_STEPS, "= 5 4 + = 5 4 + = 9"),  # repeated
    (TWO_STEPS, "= 2 3 + 4 + = 5 4 + = 9"),  # the prompt copied
    (TWO_STEPS, "= 6 4 + = 9"),
    (TWO_STEPS, "= 6 3 + = 9"),  # a false step, then a true one
    (TWO_STEPS, "= 2 7 + = 9"),  # the right value by another law
    (TWO_STEPS, "= 4 5 + = 9"),
    (TWO_STEPS, "= 5 4 + = 4 5 + = 9"),
    (TWO_STEPS, "= + + = 9"),
    (ZERO, "= 0"),
    (ZERO, "= 0 0 + = 0 0 + = 0"),
    (PAIR, "= 5 9 + = 5 4 5 + + = 5 9 + = 1"),  # back and forth
]


def test_a_whole_derivation_is_right():
    for sample, text in WHOLE:
        assert paid(RPNAnswer(), text, sample) == 1, text


def test_the_right_value_by_other_ways_is_not_a_derivation():
    for sample, text in OTHER_WAYS:
        assert paid(RPNAnswer(), text, sample) == 0, text
        assert paid(RPNAnswer(derivation=False), text, sample) == 1, text


def test_a_wrong_value_is_wrong_either_way():
    for text in ("= 5 4 + = 8", "= 8", "= 5 4 + = 0"):
        assert paid(RPNAnswer(), text) == 0, text
        assert paid(RPNAnswer(derivation=False), text) == 0, text


def test_every_completion_is_compared_with_its_own_prompt():
    rollouts = completions_of([TWO_STEPS, ONE_STEP], ["= 5 4 + = 9", "= 5", "= 5 4 + = 9", "= 5"])
    assert RPNAnswer().score(rollouts).tolist() == [1, 0, 0, 1]
    assert RPNProgress().score(rollouts).tolist() == [1, 0, 0, 1]


def test_answers_of_an_evaluation_are_values_whatever_leads_to_them():
    rollouts = completions_of([TWO_STEPS], ["= 9", "= 5 4 + = 9", "= 8", "= 9"], [False, False, False, True])
    assert RPNAnswer(derivation=False).answers(rollouts) == ["9", "9", "8", None]
    assert RPNAnswer().answers(rollouts) == ["9", "9", "8", None]


OF_OTHER_DATA = [
    (RPNAnswer(7, derivation=False), Sample("<boe> 5 6 +", "", "11", 7)),  # 4 modulo 7
    (RPNAnswer(), Sample("<boe> 60 70 +", "", "17", 7)),  # of modulus 113
    (RPNAnswer(), Sample("<boe> 2 3 + +", "", "5", 7)),
    (RPNAnswer(), Sample("<boe> 5", "", "5", 7)),
    (RPNProgress(), Sample("<bos><big>1+2<answer>", "", "3", 7)),
    (RPNReward(), Sample("<boe> 2 3 +", "", "", 7)),
]


def test_data_of_another_modulus_or_task_are_refused_in_one_line():
    for reward, sample in OF_OTHER_DATA:
        with pytest.raises(
            ValueError, match=r"the reference '\d*' of sample 7 is not the value of .* set modulus [^\n]*RPN\.$"
        ):
            paid(reward, "= 5", sample)


# --- RPNProgress ---------------------------------------------------------------------------------------------------


SHARES = [
    (TWO_STEPS, "= 5 4 + = 9", 1),
    (TWO_STEPS, "= 5 4 + = 8", 1 / 2),
    (TWO_STEPS, "= 5 4 +", 1 / 2),
    (TWO_STEPS, "= 5 4 + = 5 4 + = 9", 1 / 2),  # steps after a repetition earn nothing
    (TWO_STEPS, "= 6 4 + = 10", 0),
    (TWO_STEPS, "= 9", 0),
    (TWO_STEPS, "= 2 3 + 4 + = 5 4 + = 9", 0),
    (TWO_STEPS, "5 4 + = 9", 0),
    (TWO_STEPS, "", 0),
    (TWO_STEPS, "= 5 4 + = 9 = 9 = 9", 1),
    (PAIR, "= 5 4 5 + +", 1 / 3),
    (PAIR, "= 5 9 +", 2 / 3),
    (PAIR, "= 5 4 5 + + = 5 9 + = 2", 2 / 3),
    (PAIR, "= 5 9 + = 1", 1),
    (ZERO, "= 0", 0),
    (ZERO, "= 0 = 0 = 0", 0),
    (ZERO, "0 = 0", 0),
    (ZERO, "= 0 0 + = 0 0 + = 0", 1 / 2),
]


def test_true_steps_from_the_first_on_earn_their_share():
    for sample, text, share in SHARES:
        assert paid(RPNProgress(), text, sample) == pytest.approx(share), text


def test_true_steps_count_in_a_truncated_completion():
    assert paid(RPNProgress(), "= 5 4 + = 9", truncated=True) == 1
    assert paid(RPNProgress(), "= 5 4 + =", truncated=True) == 0.5
    assert paid(RPNProgress(), "= 5 4", truncated=True) == 0


# --- RPNReward --------------------------------------------------------------------------------------------------

COMPLETIONS = ["= 5 4 + = 9", "= 9", "= 0", "9"]


BOTH = {"boxed": [1, 1, 1, 0], "correct": [1, 0, 0, 0]}
PAID = [
    ({}, [1.0, 0.3, 0.3, 0.0], BOTH),
    ({"derivation": False}, [1.0, 1.0, 0.3, 0.0], {"boxed": [1, 1, 1, 0], "correct": [1, 1, 0, 0]}),
    ({"boxed_weight": 0.2, "correct_weight": 0.8}, [1.0, 0.2, 0.2, 0.0], BOTH),
    ({"boxed_weight": 0.0, "correct_weight": 2.0}, [2.0, 0.0, 0.0, 0.0], BOTH),
    ({"reward_type": "boxed"}, [1, 1, 1, 0], {"boxed": [1, 1, 1, 0]}),
    ({"reward_type": "correct"}, [1, 0, 0, 0], {"correct": [1, 0, 0, 0]}),
    ({"reward_type": "correct", "derivation": False}, [1, 1, 0, 0], {"correct": [1, 1, 0, 0]}),
]
REFUSED = [
    ({"reward_type": "partial"}, r"^reward\.reward_type is 'partial'; write one of boxed, correct, combined\.$"),
    ({"boxed_weight": -0.1}, r"^reward\.boxed_weight and correct_weight are \(-0\.1, 0\.7\); write 0 or more, .*\.$"),
    ({"correct_weight": float("nan")}, r"^reward\.boxed_weight and correct_weight are \(0\.3, nan\); .*\.$"),
    ({"correct_weight": float("inf")}, r"^reward\.boxed_weight and correct_weight are \(0\.3, inf\); .*\.$"),
    ({"boxed_weight": 0.0, "correct_weight": 0.0}, r"^reward\.boxed_weight and correct_weight are \(0\.0, 0\.0\); .*\.$"),
    ({"reward_type": "boxed", "boxed_weight": 0.5}, r"^reward weights \(0\.5, 0\.7\) do not go with .* boxed; .*\.$"),
    ({"reward_type": "correct", "boxed_weight": 0.0}, r"^reward weights \(0\.0, 0\.7\) do not go with .* correct; .*\.$"),
    ({"reward_type": "boxed", "derivation": False}, r"^reward\.derivation false does not go with reward_type boxed, .*\.$"),
]


def test_the_type_and_the_weights_say_what_is_paid_and_logged():
    for options, rewards, parts in PAID:
        rollouts = completions_of([TWO_STEPS], COMPLETIONS)
        score_rollouts(RPNReward(**options), rollouts)
        assert rollouts.rewards.tolist() == pytest.approx(rewards), options
        assert {name: part.tolist() for name, part in rollouts.parts.items()} == parts, options


def test_options_that_do_not_go_together_are_refused_in_one_line():
    for options, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            RPNReward(**options)


# --- the task's own completions, and real tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("grammar", [RPNGrammar(), RPNGrammar(113, ("+", "-", "*"), 1, 8), RPNGrammar(2, ("*",), 1, 5)])
def test_the_true_completion_earns_everything(grammar):
    samples = list(RPNProblems(grammar, 100, 0))
    rollouts = completions_of(samples, [sample.completion for sample in samples])
    modulus = grammar.modulus
    for reward in (RPNFormat(modulus), RPNAnswer(modulus), RPNAnswer(modulus, derivation=False), RPNProgress(modulus)):
        assert reward.score(rollouts).tolist() == [1.0] * 100
    assert RPNReward(modulus=modulus).score(rollouts).tolist() == pytest.approx([1.0] * 100)


def sampled(renderer: Renderer, text: str, truncated: bool = False) -> Rollouts:
    """A completion as the sampler hands it on: ids, of which the last is the end token unless it was truncated."""
    ids = torch.tensor([renderer.tokenizer(text)["input_ids"]])
    rollouts = completions_of([TWO_STEPS], [""], [truncated])
    rollouts.completion_ids, rollouts.lengths = ids, torch.tensor([ids.shape[1]])
    rollouts.texts = renderer.decode(rollouts)
    return rollouts


ENDS = [
    ("= 5 4 + = 9 <eoe>", False, 1, 1),
    ("= 0 <eoe>", False, 1, 0),
    ("= 5 4 + = 9", True, 0, 0),
    ("= 5 4 + = 9 <eoe> <eoe>", False, 0, 0),
    ("= 9 <eoe> 3 <eoe>", False, 0, 0),
    ("= 5 4 + = 9 <pad> <eoe>", False, 0, 0),
    ("<eoe>", False, 0, 0),
]


def test_the_end_token_is_the_one_that_ended_the_sampling():
    renderer = Renderer(rpn_tokenizer(13))
    for text, truncated, boxed, correct in ENDS:
        rollouts = sampled(renderer, text, truncated)
        assert float(RPNFormat().score(rollouts)) == boxed, text
        assert float(RPNAnswer().score(rollouts)) == correct, text


# --- what the seed's rewards got wrong -------------------------------------------------------------------------------


def test_the_format_alone_is_not_all_that_is_paid():
    # The seed's trainer paid the format whatever reward_type said, so that `= 0` was as good as the answer.
    rollouts = completions_of([TWO_STEPS], ["= 0", "= 5 4 + = 9"])
    worst, best = RPNReward().score(rollouts).tolist()
    assert worst < best


def test_a_completion_without_an_end_token_is_not_read_from_its_end():
    # The seed looked for the first end token and, without one, wrapped around to the row's last tokens.
    assert paid(RPNReward(), "= 9", ONE_STEP, truncated=True) == 0


def test_an_answer_inside_a_completion_does_not_count():
    # The seed read the two tokens before the last end token, whatever stood around them.
    assert paid(RPNReward(), "= 5 <eoe> 3 3 3", ONE_STEP) == 0
    assert paid(RPNReward(), "3 3 3 = 5", ONE_STEP) == 0


def test_luck_does_not_pay():
    # One in 13 values is right; the seed paid it in full without a single step.
    guesses = [f"= {value}" for value in range(13)]
    assert max(RPNAnswer().score(completions_of([TWO_STEPS], guesses)).tolist()) == 0
