"""Which predictions earn the prefix-matching reward of RPT, by hand and against a slow reference that knows only bytes."""

import random
from typing import NamedTuple

import pytest
import torch
from tiny_rollouts import completions_of
from vocabularies import KINDS, LINES, pieces_of

from lit_rl.rewards import AnswerFormat, PrefixMatch, Reward, WeightedSum
from lit_rl.rewards.base import RewardError, score_rollouts
from lit_rl.rewards.prefix_match import matched_tokens
from lit_rl.rollouts import Rollouts
from lit_rl.text.token_bytes import token_bytes, write_pieces
from lit_rl.types import Sample

TIME = [b" time", b" and", b" time", b" again"]
TAGS = AnswerFormat(opening="<answer>", closing="</answer>")
DIRECT = AnswerFormat(after="", opening="", closing="")


def completions(texts: list[str], *references: list[bytes], truncated=None, prompt: str = "") -> Rollouts:
    """Completions of as many prompts as there are references."""
    samples = [Sample(prompt, "", write_pieces(pieces), n) for n, pieces in enumerate(references)]
    return completions_of(samples, texts, truncated)


def boxed(prediction: str) -> str:
    return rf"Let me see.</think>It is \boxed{{{prediction}}}."


def paid(text: str, pieces: list[bytes] = TIME, truncated: bool = False, prompt: str = "", **options) -> float:
    return float(PrefixMatch(**options).score(completions([text], pieces, truncated=[truncated], prompt=prompt)))


# --- boundaries ---------------------------------------------------------------------------------------------------


def test_a_prediction_counts_up_to_the_end_of_a_token():
    rewards = {"time": 0, " time ": 0, " time a": 0, " time": 1, " time and": 1, " time and time again": 1, "": 0}
    assert {prediction: paid(boxed(prediction)) for prediction in rewards} == rewards


def test_boundaries_come_from_the_bytes_of_the_original_tokens_in_multi_byte_characters():
    rewards = {"é": 1, "éa": 0, "éab": 1, "ab": 0}
    assert {prediction: paid(boxed(prediction), [b"\xc3", b"\xa9", b"ab"]) for prediction in rewards} == rewards


def test_half_a_character_counts_if_it_is_a_token():
    half = b"\xc3".decode("utf-8", "surrogateescape")
    assert paid(boxed(half), [b"\xc3", b"\xa9"]) == 1
    assert paid(boxed(half), ["é".encode()]) == 0
    assert paid(boxed("\ufffd"), [b"\xc3", b"\xa9"]) == 0


def test_boundaries_come_from_the_original_tokens_even_if_the_text_alone_would_be_cut_otherwise():
    assert [paid(boxed("1"), pieces) for pieces in ([b"1", b"23"], [b"12", b"3"], [b"123"])] == [1, 0, 0]


def test_boundaries_hold_with_the_leading_space_of_a_tokenizer_that_begins_texts_with_one():
    pieces = pieces_of(KINDS["sentencepiece"](), "and time again")
    assert b"".join(pieces) == b" and time again"
    before = b" and"
    while before:
        before = before.removeprefix(pieces.pop(0))
    rewards = {" time": 1, "time": 0, " time again": 1, " time again ": 0}
    assert {prediction: paid(boxed(prediction), pieces) for prediction in rewards} == rewards


def test_a_prediction_longer_than_what_follows_is_wrong():
    assert paid(boxed(" time and"), [b" time"]) == 0


def test_an_end_token_in_what_follows_is_a_token_like_others():
    assert [paid(boxed(text), [b" again", b"<eos>"]) for text in (" again", " again<eos>", "<eos>")] == [1, 1, 0]


def test_nothing_matches_if_nothing_follows():
    assert paid(boxed(" time"), []) == 0


def test_a_token_without_bytes_earns_nothing_for_an_empty_prediction():
    assert paid(boxed(""), [b"", b"a"]) == 0
    assert matched_tokens(b"", [b"", b"a"]) == 0
    assert paid(boxed("a"), [b"", b"a"]) == 1


# --- where the prediction stands ---------------------------------------------------------------------------------


BOXES = {
    r"</think>\boxed{a}": "a",
    r"\boxed{a}</think>\boxed{b}</think>\boxed{c}": "c",
    r"</think>\boxed{a} or \boxed{b}": "b",
    r"</think>\boxed{a}</think>": None,
    r"</think>\boxed{a} but \boxed{b": "a",
    r"</think>\boxed{a": None,
    r"</think>a": None,
    r"\boxed{a}": None,
    "": None,
    r"</think>\boxed{\frac{a}{b}} }": r"\frac{a}{b}",
    r"</think>\boxed{{a}": None,
    r"</think>} {\boxed{a}}": "a",
    r"</think>\boxed{\boxed{a}}": "a",
    r"</think>\boxed{ 4}": " 4",
    "</think>\\boxed{\n}": "\n",
    r"</think>\boxed{ }": " ",
    r"</think>\boxed{}": "",
    r"</think>\boxed {a}": None,
}


def test_the_prediction_is_the_last_closed_box_after_the_last_end_of_reasoning():
    assert {text: AnswerFormat().read(text) for text in BOXES} == BOXES


def test_other_tags_can_say_where_the_prediction_stands():
    predictions = {
        "</think><answer> a</answer>": " a",
        "</think><answer>a</answer> or <answer>b</answer>.": "b",
        "</think><answer>a</answer> but <answer>b": "a",
        "</think><answer>{</answer>": "{",
        "<answer>a</answer></think>": None,
        r"</think>\boxed{a}": None,
    }
    assert {text: TAGS.read(text) for text in predictions} == predictions


def test_the_prediction_may_stand_without_reasoning_before_it():
    assert AnswerFormat(after="").read(r"so \boxed{a}") == "a"
    assert AnswerFormat(after="</think>", opening="", closing="").read("so</think> a}") == " a}"


def test_with_all_tags_empty_the_whole_completion_is_the_prediction():
    assert DIRECT.read(r" a</think>\boxed{b}") == r" a</think>\boxed{b}"
    assert paid(" time and", answer=DIRECT) == 1


def test_half_a_pair_of_tags_is_refused():
    with pytest.raises(ValueError, match=r"answer\.opening is '' and answer\.closing '}'; write both or leave both empty"):
        AnswerFormat(opening="")


def test_the_prediction_is_extracted_from_the_completion_only():
    prompt = r"Write </think>\boxed{ time} at the end, please."
    assert paid("I do not know.", prompt=prompt) == 0
    assert paid("Hm.</think>I do not know.", prompt=prompt) == 0
    assert paid(r"It said \boxed{ time}.", prompt=prompt) == 0


def test_balanced_braces_are_extracted_whole():
    assert paid(boxed(r"\frac{1}{2}"), [rb"\frac", b"{1}", b"{2}", b" is"]) == 1


def test_whitespace_is_kept():
    assert [paid(boxed(text), [b" 4", b"\n"]) for text in (" 4", "4", " 4 ", " 4\n", "  4")] == [1, 0, 0, 1, 0]


def test_an_opening_that_is_repeated_without_end_is_read_in_one_pass():
    assert AnswerFormat().read("</think>" + r"\boxed{" * 50_000) is None  # a pass for each of them takes an hour


# --- truncated completions ----------------------------------------------------------------------------------------


def test_a_completion_that_ran_into_its_limit_has_no_prediction():
    assert paid(boxed(" time"), truncated=True) == 0
    after = AnswerFormat(opening="", closing="")
    assert paid("so</think> time", truncated=True, answer=after) == 0
    assert paid("so</think> time", answer=after) == 1


def test_a_whole_completion_counts_even_if_it_ran_into_its_limit():
    assert paid(" time", truncated=True, answer=DIRECT) == 1


# --- credits, penalty, parts --------------------------------------------------------------------------------------


CREDITS = {
    " time": (1, 1, 1),
    " time and": (1, 1, 1),
    " time flies": (0, 5 / 11, 1),
    " time and more": (0, 9 / 14, 1),
    " times": (0, 5 / 6, 1),
    " tim": (0, 0, 0),
    "time": (0, 0, 0),
    "": (0, 0, 0),
}
"""Credits ``exact``, ``partial`` and ``first_token`` by prediction."""


def test_the_three_credits_of_a_prediction():
    for prediction, (exact, partial, first_token) in CREDITS.items():
        assert paid(boxed(prediction)) == exact, prediction
        assert paid(boxed(prediction), credit="partial") == pytest.approx(partial), prediction
        assert paid(boxed(prediction), credit="first_token") == first_token, prediction


def test_no_prediction_costs_the_penalty_and_a_wrong_one_does_not():
    texts = [boxed(" time"), boxed("x"), "no idea", boxed(" time")]
    rollouts = completions(texts, TIME, truncated=[False, False, False, True])
    assert PrefixMatch(no_answer=-0.5).score(rollouts).tolist() == [1, 0, -0.5, -0.5]


def test_an_empty_box_is_an_answer():
    assert paid(boxed(""), no_answer=-0.5) == 0


def test_a_penalty_above_0_is_refused():
    with pytest.raises(ValueError, match=r"no_answer is 0\.5; it is a penalty: write 0 or less"):
        PrefixMatch(no_answer=0.5)


def test_an_unknown_credit_is_refused():
    with pytest.raises(ValueError, match="exact, partial, first_token"):
        PrefixMatch(credit="half")


def test_the_parts_are_match_answers_and_matched_tokens():
    rollouts = completions([boxed(" time and"), boxed(" time flies"), "", boxed(" time")], TIME)
    score_rollouts(PrefixMatch(no_answer=-1.0), rollouts)
    assert {name: value.tolist() for name, value in rollouts.parts.items()} == {
        "prefix_match": [1, 0, 0, 1],
        "answered": [1, 1, 0, 1],
        "matched_tokens": [2, 0, 0, 1],
    }
    assert rollouts.rewards.tolist() == [1, 0, -1, 1]


class Short(Reward):
    """1 for less than 40 characters."""

    def score(self, rollouts):
        return torch.tensor([float(len(text) < 40) for text in rollouts.texts])


def test_a_weighted_sum_adds_the_total_and_logs_all_parts():
    rollouts = completions([boxed(" time"), "no idea"], TIME)
    score_rollouts(WeightedSum([PrefixMatch(no_answer=-1.0), Short()], [2.0, 0.25]), rollouts)
    assert rollouts.rewards.tolist() == [2.25, -1.75]
    assert set(rollouts.parts) == {"prefix_match", "answered", "matched_tokens", "short"}


def test_a_reference_without_tokens_is_an_error_that_names_the_reward():
    with pytest.raises(RewardError, match=r"reward prefix_match: .*the reference '日'"):
        score_rollouts(PrefixMatch(), completions_of([Sample("", "", "日", 0)], [boxed("46")]))


# --- groups and hacks ---------------------------------------------------------------------------------------------


def test_the_reward_is_per_response_and_each_is_compared_with_its_own_prompts_text():
    rollouts = completions([boxed(" a"), boxed(" b"), boxed(" a"), boxed(" b")], [b" a"], [b" b"])
    assert PrefixMatch().score(rollouts).tolist() == [1, 0, 0, 1]


def test_a_group_that_agrees_on_a_wrong_prediction_earns_less_than_one_that_is_right():
    wrong = PrefixMatch().score(completions([boxed("x")] * 4, TIME)).sum()
    right = PrefixMatch().score(completions([boxed("x"), boxed(" time"), boxed("x"), ""], TIME)).sum()
    assert wrong == 0 < right


LOOKALIKES = [
    boxed(" time, x, the"), boxed(" time time"), boxed("nan"), boxed("0=0"), boxed(r"\text{ time}"),
    boxed("' time'"), boxed(" TIME"), boxed(" time</think>"), boxed(" time") + r"\boxed{x}", boxed(" time") + "</think>",
    boxed("\u00a0time"), boxed(" t\u0456me"), boxed(" time\u200b"), " time", "</think> time",
]  # fmt: skip


def test_a_text_that_looks_like_the_right_prediction_and_is_not_earns_nothing():
    for text in LOOKALIKES:
        assert paid(text) == 0, text


# --- in an evaluation ---------------------------------------------------------------------------------------------


def test_answers_compare_by_value_and_are_judged_one_by_one():
    reward = PrefixMatch()
    rollouts = completions([boxed(" time"), r"</think>\boxed{ time}", boxed("x"), "no idea"], TIME)
    sample = rollouts.prompts.samples[0]
    answers = reward.answers(rollouts)
    assert answers == [b" time", b" time", b"x", None]
    assert [reward.is_right(answer, sample) for answer in answers] == [True, True, False, False]


# --- against the slow reference -----------------------------------------------------------------------------------


def slow_prediction(completion: bytes) -> bytes | None:
    """The last box after the last end of reasoning, searched for from the back at every place, in bytes."""
    parts = completion.split(b"</think>")
    for start in reversed(range(len(parts[-1]) if len(parts) > 1 else 0)):
        if parts[-1][start : start + 7] == rb"\boxed{":
            for end in range(start + 7, len(parts[-1])):
                inside = parts[-1][start + 7 : end]
                if parts[-1][end : end + 1] == b"}" and inside.count(b"{") == inside.count(b"}"):
                    return inside
    return None


def slow_reward(prediction: bytes | None, pieces: list[bytes]) -> float:
    """Equation 3 of arXiv 2506.08007 as it is written: the set of all lengths, and a slice of the bytes."""
    follows = b"".join(pieces)
    lengths = {len(b"".join(pieces[: count + 1])) for count in range(len(pieces))} - {0}
    return float(prediction is not None and len(prediction) in lengths and follows[: len(prediction)] == prediction)


PREDICTIONS = {
    "right": lambda rng, right, label, later: right,
    "empty": lambda rng, right, label, later: b"",
    "longer than the label": lambda rng, right, label, later: label + later + b"x" * rng.randrange(2),
    "ending inside a character or a token": lambda rng, right, label, later: label[: rng.randrange(len(label) + 1)],
    "leading spaces": lambda rng, right, label, later: rng.choice([b" " + right, right.lstrip(b" "), b" " * rng.randrange(3)]),
    "nested braces": lambda rng, right, label, later: rng.choice([b"{" + right + b"}", right + b"{}", right + b"}"]),
    "of another place": lambda rng, right, label, later: later,
}
LAYOUTS = {
    "plain": lambda box, other, quote: b"hm</think>" + box,
    "several boxes": lambda box, other, quote: other + b"</think>" + other + b" or " + box + b".",
    "a last box that is not closed": lambda box, other, quote: b"</think>" + box + b" or " + other[:-1],
    "no </think>": lambda box, other, quote: b"so " + box,
    "box before </think>": lambda box, other, quote: box + b"</think>" + other[3:],
    "two </think>": lambda box, other, quote: other + b"</think>hm</think>" + box,
    "an answer quoted from the prompt": lambda box, other, quote: b"it says " + quote + b"</think>I cannot tell",
}


class Case(NamedTuple):
    """What was sampled, what follows, and what it is to earn."""

    sampled: bytes
    cut: bool
    pieces: list[bytes]
    prompt: str
    prediction: bytes | None
    reward: float


def random_case(rng: random.Random, line: list[bytes], vocabulary: list[bytes], table: dict[bytes, int]) -> Case:
    """A place of the line, and a completion in tokens of the vocabulary that predicts what follows in one of many ways."""
    place, count = rng.randrange(len(line)), rng.randint(1, 5)
    pieces = line[place : place + count]
    right, later = b"".join(pieces[: rng.randint(1, count)]), b"".join(line[place + count : place + count + 2])
    body = rng.choice(list(PREDICTIONS.values()))(rng, right, b"".join(pieces), later)
    box, other, quote = (b"\\boxed{" + inside + b"}" for inside in (body, later, right))
    layout = rng.choice([LAYOUTS["plain"], *LAYOUTS.values()])
    sampled = b"".join(vocabulary[token] for token in spell(table, layout(box, other, quote)))
    cut = rng.random() < 0.05
    prediction = None if cut else slow_prediction(sampled)
    prompt = "Predict:</think>" + quote.decode("utf-8", "replace")
    return Case(sampled, cut, pieces, prompt, prediction, slow_reward(prediction, pieces))


def spell(table: dict[bytes, int], text: bytes) -> list[int]:
    """Tokens that spell a text, always the longest that fits; bytes that no token has are left out."""
    ids: list[int] = []
    while text:
        size = next((size for size in range(6, 0, -1) if text[:size] in table), 0)
        ids += [table[text[:size]]] if size else []
        text = text[size or 1 :]
    return ids


CASES = 3000
"""About 50 of each kind of prediction in each layout, for each kind of tokenizer."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_agrees_with_a_brute_force_byte_reference_on_random_cases(kind):
    rng, tokenizer = random.Random(kind), KINDS[kind]()
    vocabulary, lines = token_bytes(tokenizer), [pieces_of(tokenizer, line) for line in LINES]
    table = {piece: token for token, piece in enumerate(vocabulary) if piece and token not in tokenizer.all_special_ids}
    cases = [random_case(rng, rng.choice(lines), vocabulary, table) for _ in range(CASES)]
    texts = [case.sampled.decode("utf-8", "surrogateescape") for case in cases]
    rollouts = completions(texts, *(case.pieces for case in cases), truncated=[case.cut for case in cases])
    samples = zip(rollouts.prompts.samples, cases, strict=True)
    rollouts.prompts.samples = [sample._replace(prompt=case.prompt) for sample, case in samples]
    assert PrefixMatch().answers(rollouts) == [case.prediction for case in cases]
    rewards = PrefixMatch().score(rollouts).tolist()
    assert rewards == [case.reward for case in cases]
    assert 0.1 < sum(rewards) / len(rewards) < 0.5
