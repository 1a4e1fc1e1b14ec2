"""Omni-MATH: filters, splits that no filter changes, what is asked, and real runs."""

import json

import pytest
from math_runs import CHAT, attached, bpe_folder, real_file, text_of_positions, train_and_test, write_jsonl

from lit_rl.algorithms import GRPO, SFT
from lit_rl.datamodules import OmniMath, PositionSpec
from lit_rl.datamodules.jsonl import split_of
from lit_rl.rewards import MathAnswer
from lit_rl.rewards.math_judge import MathJudge

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
def tokenizer(tmp_path_factory):
    return bpe_folder(tmp_path_factory.mktemp("bpe"), [json.dumps(row, ensure_ascii=False) for row in ROWS])


def numbers(data):
    """Numbers of all samples, which are the lines of the file from 0."""
    return {sample.number for samples in (data.train_set, data.val_set, data.test_set) for sample in samples}


# --- filters and sets ------------------------------------------------------------------------------------------------


def test_difficulties_are_kept_from_the_lowest_to_the_highest_given(path, tokenizer):
    data = attached(OmniMath(path, min_difficulty=2.0, max_difficulty=3.5), tokenizer)
    assert numbers(data) == {number for number in range(120) if 2.0 <= 1 + number % 8 / 2 <= 3.5}


@pytest.mark.parametrize(
    ("domains", "kinds"),
    [
        (["Algebra"], {0, 1}),
        (["Mathematics -> Geometry"], {1}),
        (["Prealgebra", "Number Theory"], {1, 2}),
        (["Geometry -> Plane Geometry"], {1}),
        (["Mathematics"], {0, 1, 2}),
        (None, {0, 1, 2}),
    ],
)
def test_a_domain_is_a_name_on_one_of_a_problems_paths(path, tokenizer, domains, kinds):
    data = attached(OmniMath(path, domains=domains), tokenizer)
    assert numbers(data) == {number for number in range(120) if number % 3 in kinds}


@pytest.mark.parametrize("domains", [["Theory"], ["algebra"], ["Intermediate"]])
def test_a_part_of_a_name_is_no_domain(path, tokenizer, domains):
    with pytest.raises(ValueError, match="none of 120 problems"):
        attached(OmniMath(path, domains=domains), tokenizer)


def test_a_filter_that_leaves_nothing_says_what_there_is(path, tokenizer):
    message = r"none of 120 problems is left by min_difficulty 8\.0, .* from 1\.0 to 4\.5, in Algebra, Geometry, Number Theory"
    with pytest.raises(ValueError, match=message) as error:
        attached(OmniMath(path, min_difficulty=8.0), tokenizer)
    assert "\n" not in str(error.value)


def test_problems_are_held_out_by_the_hash_of_their_text(path, tokenizer):
    data = attached(OmniMath(path, val_share=0.2, test_share=0.3), tokenizer)
    places = {number: split_of(ROWS[number]["problem"]) for number in range(120)}
    assert {sample.number for sample in data.val_set} == {n for n, place in places.items() if place < 0.2}
    assert {sample.number for sample in data.test_set} == {n for n, place in places.items() if 0.2 <= place < 0.5}
    assert {sample.number for sample in data.train_set} == {n for n, place in places.items() if place >= 0.5}


def test_a_filter_moves_no_problem_from_one_set_to_another(path, tokenizer):
    whole, part = attached(OmniMath(path), tokenizer), attached(OmniMath(path, min_difficulty=2.0), tokenizer)
    for name in ("train_set", "val_set", "test_set"):
        assert set(getattr(part, name)) < set(getattr(whole, name))


def test_sets_that_come_out_empty_are_refused_with_their_sizes(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "three.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match=r"3 problems make \d train, \d val, \d test; widen the filters"):
        attached(OmniMath(path), tokenizer)


def test_evaluation_problems_are_limited(path, tokenizer):
    data = attached(OmniMath(path, eval_problems=2), tokenizer)
    assert (len(data.val_set), len(data.test_set)) == (2, 2)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_asks_for_a_box_and_has_the_answer(path, tokenizer):
    sample = next(sample for sample in attached(OmniMath(path), tokenizer).train_set)
    expected = ROWS[sample.number]
    assert sample.prompt.startswith(f"{expected['problem']}\n\n")
    assert sample.prompt.endswith("within \\boxed{}.\n")
    assert (sample.completion, sample.reference) == (expected["solution"], expected["answer"])


def test_a_chat_template_is_used_where_there_is_one(path, tmp_path):
    chatting = bpe_folder(tmp_path / "chat", ["What"], CHAT)
    prompt = attached(OmniMath(path), chatting).train_set[0].prompt
    assert prompt.startswith("<bos><|user|>What follows")
    assert prompt.endswith("within \\boxed{}.<|end|><|assistant|>")
    assert "<|" not in attached(OmniMath(path, chat=False), chatting).train_set[0].prompt


def test_positions_lie_inside_the_solution_and_their_pieces_are_its_text(path, tokenizer):
    data = attached(OmniMath(path, positions=PositionSpec(labels_length=2, eval_positions=0)), tokenizer)
    whole = attached(OmniMath(path), tokenizer)
    context, targets = text_of_positions(data.train_set, 3)
    assert context.decode() == ROWS[whole.train_set[3].number]["problem"] + "\n\n"
    assert targets.decode() == whole.train_set[3].completion
    assert len(data.train_set[0].target) == 2
    assert len(data.test_set) > len(whole.test_set)


# --- what bad input gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"difficulty": "hard"}, "line 2: field 'difficulty' is of type str; write int or float"),
        ({"difficulty": True}, "line 2: field 'difficulty' is of type bool"),
        ({"domain": "Algebra"}, "line 2: field 'domain' is of type str; write list"),
        ({"domain": [1]}, "line 2: field 'domain' holds something else than texts"),
        ({"answer": None}, "line 2: field 'answer' is of type NoneType; write str"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path, tokenizer, change, message):
    path = write_jsonl(tmp_path / "broken.jsonl", [ROWS[0], ROWS[1] | change, *ROWS[2:]])
    with pytest.raises(ValueError, match=message):
        attached(OmniMath(path), tokenizer)
    with pytest.warns(UserWarning, match="line 2: left out 1 malformed"):
        assert len(numbers(attached(OmniMath(path, malformed="skip"), tokenizer))) == 119


def test_a_missing_file_and_a_missing_data_set_are_named_before_anything_runs():
    with pytest.raises(ValueError, match=r"data\.path: no file 'nowhere\.jsonl'; give a JSONL file"):
        OmniMath("nowhere.jsonl").prepare_data()
    with pytest.raises(ValueError, match=r"data\.dataset: cannot load 'nobody/nothing' .*set data\.path"):
        OmniMath(dataset="nobody/nothing").prepare_data()


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match=r"val_share is 0\.5 and test_share 0\.5"):
        OmniMath(val_share=0.5, test_share=0.5)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SFT, GRPO])
def test_it_trains_and_tests(tmp_path, path, tokenizer, algorithm):
    data = OmniMath(path, batch_size=4, eval_problems=4)
    metrics = train_and_test(tmp_path, data, tokenizer, MathAnswer(), algorithm)
    assert metrics["loss"] > 1 if algorithm is SFT else metrics["reward"] == 0


@pytest.mark.parametrize("algorithm", [SFT, GRPO])
def test_the_real_file_trains_and_tests(tmp_path, tokenizer, algorithm):
    data = OmniMath(real_file("omni_math_rule.jsonl"), max_difficulty=2.0, batch_size=4, eval_problems=4)
    metrics = train_and_test(tmp_path, data, tokenizer, MathAnswer(), algorithm)
    assert metrics["loss"] > 1 if algorithm is SFT else metrics["reward"] == 0


def test_the_real_file_is_filtered_by_difficulty(tokenizer):
    data = attached(OmniMath(real_file("omni_math_rule.jsonl"), max_difficulty=2.0), tokenizer)
    assert len(numbers(data)) == 88 + 144 + 135, "problems of difficulty 1, 1.5 and 2"


def test_the_real_file_loads_whole_and_its_positions_are_its_solutions(tokenizer):
    path = real_file("omni_math_rule.jsonl")
    whole = attached(OmniMath(path), tokenizer)
    assert len(numbers(whole)) == 2821
    positions = attached(OmniMath(path, positions=PositionSpec()), tokenizer).train_set
    for document in range(0, len(whole.train_set), 500):
        assert text_of_positions(positions, document)[1].decode() == whole.train_set[document].completion


def test_most_real_answers_are_equal_to_themselves_in_the_eyes_of_the_judge(tokenizer):
    samples = attached(OmniMath(real_file("omni_math_rule.jsonl")), tokenizer).train_set[::20]
    judge = MathJudge()
    equal = [judge.equal(sample.reference, sample.reference) for sample in samples]
    assert sum(equal) > 0.95 * len(equal)
