"""Omni-MATH: filters, splits that no filter changes, what is asked, and real runs."""

import json

import pytest
from math_runs import attached, bpe_folder, part_of_real_file, real_file, text_of_positions, train_and_test, write_jsonl

from lit_rl.algorithms import GRPO
from lit_rl.datamodules import OmniMath, PositionSpec
from lit_rl.rewards import MathAnswer
from lit_rl.rewards.math_judge import MathJudge
from lit_rl.text.hash_split import hash_share

DOMAINS = [
    ["Mathematics -> Algebra -> Intermediate Algebra"],
    ["Mathematics -> Geometry -> Plane Geometry", "Mathematics -> Algebra -> Prealgebra"],
    ["Mathematics -> Number Theory"],
]


def row(number):
    """Difficulties 1.0, 1.5, ... 4.5, and three kinds of domains in turn."""
    solution = f"Since ${number}+1={number + 1}$ → as is known → it is $\\boxed{{{number + 1}}}$."
    return {
        "problem": f"What follows ${number}$?",
        "solution": solution,
        "answer": str(number + 1),
        "difficulty": 1 + number % 8 / 2,
        "domain": DOMAINS[number % 3],
        "source": "none",
    }


ROWS = [row(number) for number in range(120)]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "omni.jsonl", ROWS)


@pytest.fixture(scope="module")
def real(tokenizer):
    """The real file, whole."""
    return attached(OmniMath(real_file("omni_math_rule.jsonl")), tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe_folder(tmp_path_factory.mktemp("bpe"), [json.dumps(row, ensure_ascii=False) for row in ROWS])


def numbers(data):
    """Numbers of all samples, which are the lines of the file from 0."""
    return {sample.number for samples in (data.train_set, data.val_set, data.test_set) for sample in samples}


# --- filters and sets ------------------------------------------------------------------------------------------------


def test_difficulties_are_kept_from_the_lowest_to_the_highest_given(path, tokenizer):
    data = attached(OmniMath(path, min_difficulty=2.0, max_difficulty=3.5), tokenizer)
    assert numbers(data) == {number for number in range(120) if 2.0 <= 1 + number % 8 / 2 <= 3.5}


def test_a_domain_is_a_name_on_one_of_a_problems_paths(path, tokenizer):
    for domains, kinds in (
        (["Algebra"], {0, 1}),
        (["Mathematics -> Geometry"], {1}),
        (["Prealgebra", "Number Theory"], {1, 2}),
        (["Geometry -> Plane Geometry"], {1}),
        (["Mathematics"], {0, 1, 2}),
        (None, {0, 1, 2}),
    ):
        data = attached(OmniMath(path, domains=domains), tokenizer)
        assert numbers(data) == {number for number in range(120) if number % 3 in kinds}, domains


def test_a_part_of_a_name_is_not_a_domain(path):
    for name in ("Theory", "algebra", "Intermediate"):
        with pytest.raises(ValueError, match="none of 120 problems"):
            OmniMath(path, domains=[name]).setup("fit")


def test_a_filter_that_leaves_nothing_says_what_there_is(path):
    message = r"none of 120 problems is left by min_difficulty 8\.0, .* from 1\.0 to 4\.5, in Algebra, Geometry, Number Theory"
    with pytest.raises(ValueError, match=message) as error:
        OmniMath(path, min_difficulty=8.0).setup("fit")
    assert "\n" not in str(error.value)


def test_problems_are_held_out_by_the_hash_of_their_text(path, tokenizer):
    data = attached(OmniMath(path, val_share=0.2, test_share=0.3), tokenizer)
    places = {number: hash_share(ROWS[number]["problem"]) for number in range(120)}
    assert {sample.number for sample in data.val_set} == {n for n, place in places.items() if place < 0.2}
    assert {sample.number for sample in data.test_set} == {n for n, place in places.items() if 0.2 <= place < 0.5}
    assert {sample.number for sample in data.train_set} == {n for n, place in places.items() if place >= 0.5}


def test_a_filter_moves_no_problem_from_one_set_to_another(path, tokenizer):
    whole, part = attached(OmniMath(path), tokenizer), attached(OmniMath(path, min_difficulty=2.0), tokenizer)
    for name in ("train_set", "val_set", "test_set"):
        assert set(getattr(part, name)) < set(getattr(whole, name))


def test_sets_that_come_out_empty_are_refused_with_their_sizes(tmp_path):
    path = write_jsonl(tmp_path / "three.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match=r"\d training, \d validation and \d test problems, .*; widen the filters"):
        OmniMath(path).setup("fit")


def test_all_splits_of_a_data_set_are_taken_together(path, tokenizer, monkeypatch):
    splits = {"one": ROWS[:50], "two": ROWS[50:]}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: splits)
    by_name, by_path = attached(OmniMath(), tokenizer), attached(OmniMath(path), tokenizer)
    for name in ("train_set", "val_set", "test_set"):
        assert getattr(by_name, name) == getattr(by_path, name)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_asks_for_a_box_and_has_the_answer(path, tokenizer):
    sample = next(sample for sample in attached(OmniMath(path), tokenizer).train_set)
    expected = ROWS[sample.number]
    assert sample.prompt.startswith(f"{expected['problem']}\n\n")
    assert sample.prompt.endswith("within \\boxed{}.\n")
    assert (sample.completion, sample.reference) == (expected["solution"], expected["answer"])


# --- what bad input gets ---------------------------------------------------------------------------------------------


def test_a_malformed_line_is_refused_by_its_number(tmp_path):
    for change, message in (
        ({"difficulty": "hard"}, "field 'difficulty' is of type str; write int or float"),
        ({"difficulty": True}, "field 'difficulty' is of type bool"),
        ({"domain": "Algebra"}, "field 'domain' is of type str; write list"),
        ({"domain": [1]}, "field 'domain' holds values that are not text"),
        ({"answer": None}, "field 'answer' is of type NoneType; write str"),
    ):
        path = write_jsonl(tmp_path / "broken.jsonl", [ROWS[0], ROWS[1] | change, *ROWS[2:]])
        with pytest.raises(ValueError, match=f"line 2: {message}"):
            OmniMath(path).setup("fit")


def test_a_missing_file_is_named_before_anything_runs():
    with pytest.raises(ValueError, match=r"data\.path: 'nowhere\.jsonl' is not a file; give a JSONL file"):
        OmniMath("nowhere.jsonl").prepare_data()


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match=r"val_share is 0\.5 and test_share 0\.5"):
        OmniMath(val_share=0.5, test_share=0.5)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_it_trains_by_grpo_and_tests(tmp_path, path, tokenizer):
    data = OmniMath(path, batch_size=4, eval_problems=4)
    assert train_and_test(tmp_path / "run", data, tokenizer, MathAnswer(), GRPO)["reward"] == 0


def test_real_problems_train_by_grpo_and_test(tmp_path, tokenizer):
    path = part_of_real_file("omni_math_rule.jsonl", tmp_path, every=10)
    data = OmniMath(path, max_difficulty=3.0, batch_size=4, eval_problems=4)
    assert train_and_test(tmp_path / "run", data, tokenizer, MathAnswer(), GRPO)["reward"] == 0


def test_the_real_file_is_filtered_by_difficulty(tokenizer):
    data = attached(OmniMath(real_file("omni_math_rule.jsonl"), max_difficulty=2.0), tokenizer)
    assert len(numbers(data)) == 88 + 144 + 135, "problems of difficulty 1, 1.5 and 2"


def test_nothing_of_the_real_file_is_lost(real):
    assert numbers(real) == set(range(2821))


def test_positions_of_real_problems_are_their_solutions(tmp_path, tokenizer):
    path = part_of_real_file("omni_math_rule.jsonl", tmp_path, every=50)
    positions = attached(OmniMath(path, positions=PositionSpec()), tokenizer).train_set
    whole = attached(OmniMath(path), tokenizer).train_set
    for document in range(0, len(whole), 8):
        assert text_of_positions(positions, document)[1].decode() == whole[document].completion


def test_most_real_answers_are_equal_to_themselves_in_the_eyes_of_the_judge(real):
    judge = MathJudge()
    answers = [sample.reference for sample in real.train_set[::40]]
    equal = [judge.equal(answer, answer) for answer in answers]
    assert sum(equal) > 0.95 * len(equal)
