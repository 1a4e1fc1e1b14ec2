"""Regime W and the majority vote, against numbers worked out by hand."""

import itertools

import pytest
import torch
from tiny_rollouts import completions_of, prompts_of, rollouts_of

from lit_rl.rewards import FinalNumber, MajorityVote, RegimeW
from lit_rl.rewards.base import score_rollouts
from lit_rl.rewards.coherence import coherence, end_agreement, follows, path_consistency
from lit_rl.tasks.changed_questions import Changed
from lit_rl.types import Sample


def answered(*completions: str, reference: str = "42", truncated=None):
    """Completions of one question."""
    return completions_of([Sample("q", "", reference, 7)], list(completions), truncated)


def words(count: int, answer: str) -> str:
    """A completion of that many words, the answer among them."""
    return " ".join(["so"] * (count - 2) + ["####", answer])


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], 0.0),
        (["1"], 1.0),
        ([None], 1.0),
        (["1", "1"], 1.0),
        (["1", "2"], 0.0),
        ([None, None], 0.0),  # no answer equals nothing
        (["1", "1", "2"], 1 / 3),
        (["1", "1", "2", "2"], 2 / 6),
        (["1", "1", "1", None], 3 / 6),
        (["1"] * 6 + ["2"] * 2, 16 / 28),
    ],
)
def test_end_agreement_is_the_share_of_equal_pairs(answers, expected):
    assert end_agreement(answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], 0.0),
        ([7], 1.0),
        ([0, 0], 1.0),
        ([9, 9, 9], 1.0),
        ([1, 3], 1 / 1.5),  # variance 1, mean 2
        ([0, 4], 1 / 3),  # variance 4, mean 2
        ([10, 20, 30], 1 / (1 + 200 / 3 / 20)),
    ],
)
def test_path_consistency_falls_with_the_variance_of_lengths(lengths, expected):
    assert path_consistency(lengths) == pytest.approx(expected)


def test_the_weights_of_the_scores():
    assert coherence(1.0, 0.0, 0.0) == pytest.approx(0.4)
    assert coherence(0.0, 1.0, 0.0) == coherence(0.0, 0.0, 1.0) == pytest.approx(0.3)
    assert coherence(1.0, 1.0, 0.5) == pytest.approx(0.85)


# --- reward of a question ----------------------------------------------------------------------------------------


def test_a_question_that_all_arms_answer_alike():
    # s_wm = 0.4 + 0.3 + 0.15 = 0.85, and 0.7 of it is 0.595; no words above 400.
    assert RegimeW().score(answered("#### 42", "#### 42")).tolist() == pytest.approx([1.595] * 2)
    assert RegimeW().score(answered("#### 41", "#### 41")).tolist() == pytest.approx([0.095] * 2)  # wrong, and still paid


def test_one_right_answer_pays_all_completions_of_the_question():
    rollouts = answered("#### 42", "#### 41", "it is 40", "#### 42 no")
    reward = RegimeW()
    score_rollouts(reward, rollouts)
    # Answers 42 41 40 42: one of six pairs. Words 2 2 3 3: variance 0.25, mean 2.5, s_path 1 / 1.1.
    s_wm = 0.4 / 6 + 0.3 / 1.1 + 0.15
    expected = {"right": 1.0, "s_end": 1 / 6, "s_path": 1 / 1.1, "s_cf": 0.5, "s_wm": s_wm, "cost": 0.0}
    assert {name: values.tolist() for name, values in rollouts.parts.items()} == {
        name: pytest.approx([value] * 4) for name, value in expected.items()
    }
    assert rollouts.rewards.tolist() == pytest.approx([1 + 0.7 * s_wm] * 4)


def test_words_above_four_hundred_cost_a_thousandth_each():
    rollouts = answered(words(600, "42"), words(600, "42"))
    assert RegimeW().score(rollouts).tolist() == pytest.approx([1.595 - 0.2] * 2)
    assert RegimeW().score(answered(words(300, "42"), words(500, "42")))[0] == pytest.approx(
        1 + 0.7 * (0.4 + 0.3 / (1 + 10_000 / 400) + 0.15)  # the mean is 400
    )


def test_a_truncated_completion_has_no_answer():
    rollouts = answered("#### 42", "#### 42", truncated=[False, True])
    assert RegimeW().parts(rollouts)["s_end"].tolist() == [0.0, 0.0]


def test_groups_are_scored_apart_in_whatever_order_their_rows_stand():
    samples = [Sample("q", "", "1", 0), Sample("r", "", "2", 1)]
    rollouts = completions_of(samples, ["#### 1", "#### 1", "#### 1", "#### 3"])
    rollouts.prompt = rollouts.group = torch.tensor([0, 1, 0, 1])
    assert RegimeW().score(rollouts).tolist() == pytest.approx([1.595, -0.185, 1.595, -0.185])  # -0.5 + 0.7 * 0.45


# --- reward of a response ----------------------------------------------------------------------------------------


def test_each_response_is_paid_for_itself():
    parts = RegimeW(per="response").parts(answered("#### 42", "#### 42", "#### 41", "two more words #### 42"))
    # Words 2 2 2 5: mean 2.75. Three of four agree on 42.
    short, long = 1 / (1 + 0.5625 / 2.75), 1 / (1 + 5.0625 / 2.75)
    assert parts["right"].tolist() == [1, 1, 0, 1]
    assert parts["s_end"].tolist() == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3])
    assert parts["s_path"].tolist() == pytest.approx([short, short, short, long])
    total = RegimeW(per="response").total(parts)
    assert float(total[2]) == pytest.approx(-0.5 + 0.7 * (0.3 * short + 0.15))
    assert float(total[3]) == pytest.approx(1 + 0.7 * (0.4 * 2 / 3 + 0.3 * long + 0.15))


def test_the_mean_of_the_responses_agreement_is_the_questions():
    for answers in itertools.product(["#### 1", "#### 2", "none"], repeat=4):
        rollouts = answered(*answers)
        per_response, per_question = (RegimeW(per=per).parts(rollouts)["s_end"] for per in ("response", "question"))
        assert float(per_response.mean()) == pytest.approx(float(per_question[0])), answers


def test_a_right_response_beats_a_wrong_one_at_all_corners():
    """Whatever agreement, length and counterfactual answers both have, in one question or in two."""
    reward = RegimeW(per="response")
    corners = itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 0.5))
    parts = dict(zip(("s_end", "s_path", "s_cf", "cost"), torch.tensor(list(corners)).T, strict=True))
    s_wm = coherence(parts["s_end"], parts["s_path"], parts["s_cf"])
    right, wrong = (reward.total(parts | {"s_wm": s_wm, "right": torch.full_like(s_wm, value)}) for value in (1.0, 0.0))
    assert float(right.min()) == pytest.approx(0.5)
    assert float(wrong.max()) == pytest.approx(0.2)


def test_a_right_minority_of_endless_length_beats_a_short_unanimous_majority():
    rollouts = answered(words(5000, "42"), *["#### 41"] * 7)
    scores = RegimeW(per="response").score(rollouts)
    assert float(scores[0]) > float(scores[1:].max())
    # The reward of the question pays all alike.
    assert len(set(RegimeW().score(rollouts).tolist())) == 1


# --- changed questions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "answer", "own", "right", "expected"),
    [
        (True, "50", "42", True, True),
        (True, "51", "42", False, False),  # it moved, but to a wrong number
        (True, "42", "42", False, False),
        (True, "50", None, True, False),  # the completion has no answer that could follow
        (True, None, "42", False, False),
        (False, "51", "42", False, True),  # no right answer is known: any other answer follows
        (False, "42", "42", False, False),
        (False, None, "42", False, False),
        (False, "51", None, False, False),
    ],
)
def test_when_an_answer_follows_a_change(known, answer, own, right, expected):
    assert follows(Changed("", 50 if known else None), answer, own, right) is expected


class Obedient:
    """Stands for an actor whose policy answers each changed question in a way that the test chooses."""

    def __init__(self, answer):
        from types import SimpleNamespace

        self.answer, self.seed, self.asked = answer, 1, []
        self.runtime = SimpleNamespace(step=0, device=torch.device("cpu"))
        from lit_rl.tasks.tokenizers import byte_tokenizer

        self.renderer = SimpleNamespace(tokenizer=byte_tokenizer(), pad_id=0)

    def generate(self, sampler, prompts, group_size, rollout):
        assert (sampler.max_new_tokens, sampler.temperature, group_size) == (32, 0.0, 1)
        self.asked += prompts.samples
        return completions_of(prompts.samples, [f"#### {self.answer(sample)}" for sample in prompts.samples])


QUESTION = "Ann has 23 apples and gives 8 away. How many are left?"
ASKED = Sample(f"Be brief. {QUESTION}\n", "23-8 = 15\n#### 15", "15", 7, question=QUESTION)


def test_an_answer_that_does_not_follow_the_change_loses_the_score():
    rollouts = completions_of([ASKED], ["#### 15", "#### 14", "nothing"])
    reward = RegimeW(per="response", counterfactual_tokens=32)
    for answer, expected in ((lambda sample: sample.reference, [1, 1, 0]), (lambda sample: 15, [0, 0, 0])):
        actor = Obedient(answer)
        reward.prepare(actor, rollouts)
        assert reward.parts(rollouts)["s_cf"].tolist() == expected
        [sample] = actor.asked
        assert sample.prompt == f"Be brief. {sample.question}\n" != ASKED.prompt


def test_without_a_known_answer_the_answer_must_differ_from_the_completions_own():
    rollouts = completions_of([ASKED._replace(completion="")], ["#### 15", "#### 14"])
    reward = RegimeW(counterfactual_tokens=32)
    reward.prepare(Obedient(lambda sample: 15), rollouts)
    assert reward.parts(rollouts)["s_cf"].tolist() == [0.5, 0.5]  # one of two follows; the question's share


def test_a_question_without_numbers_is_not_changed():
    sample = Sample("How many?\n", "", "15", 7, question="How many?")
    reward = RegimeW(counterfactual_tokens=32)
    rollouts = completions_of([sample], ["#### 15", "#### 15"])
    reward.prepare(Obedient(lambda sample: 15), rollouts)
    assert reward.parts(rollouts)["s_cf"].tolist() == [0.5, 0.5]


def test_a_sample_without_question_cannot_be_changed():
    with pytest.raises(ValueError, match="sample 7 has no question in its prompt that could be changed"):
        RegimeW(counterfactual_tokens=32).prepare(Obedient(None), answered("#### 42"))
    with pytest.raises(ValueError, match="called without `prepare`"):
        RegimeW(counterfactual_tokens=32).score(answered("#### 42"))


# --- majority vote -----------------------------------------------------------------------------------------------


def test_the_most_frequent_answer_is_paid_right_or_wrong():
    rollouts = answered("#### 41", "#### 42", "#### 41.0", "none")
    parts = MajorityVote().parts(rollouts)
    assert parts["majority_vote"].tolist() == [1, 0, 1, 0]
    assert parts["agreement"].tolist() == [0.5] * 4


def test_among_equally_frequent_answers_the_earliest_is_paid():
    assert MajorityVote().score(answered("#### 3", "#### 2", "#### 2", "#### 3")).tolist() == [1, 0, 0, 1]


def test_a_majority_below_the_least_agreement_is_not_paid():
    rollouts = answered("#### 41", "#### 42", "#### 41", "none")
    assert MajorityVote(min_agreement=0.5).score(rollouts).tolist() == [1, 0, 1, 0]
    assert MajorityVote(min_agreement=0.51).score(rollouts).tolist() == [0, 0, 0, 0]


def test_a_group_without_answers_is_not_paid():
    assert MajorityVote().score(answered("a", "b")).tolist() == [0, 0]


def test_no_reference_is_read_for_the_vote():
    assert MajorityVote(FinalNumber()).score(answered("#### 1", "#### 1", reference="not a number")).tolist() == [1, 1]


def test_rewards_of_a_rollout_with_several_prompts_in_a_group():
    """As arms make them: two styles of one question."""
    sample = Sample("q", "", "42", 7)
    prompts = prompts_of([1], [2])
    prompts.samples = [sample, sample._replace(prompt="style q")]
    group = torch.zeros(4, dtype=torch.long)
    rollouts = rollouts_of(prompts, 2, [[1]] * 4, texts=["#### 42", "#### 41", "#### 41", "#### 41"], group=group)
    assert MajorityVote().score(rollouts).tolist() == [0, 1, 1, 1]
    assert RegimeW().parts(rollouts)["s_end"].tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RegimeW(per="arm"), "reward.per is 'arm'; write one of question, response"),
        (lambda: RegimeW(counterfactual_tokens=-1), "reward.counterfactual_tokens is -1; write a whole number, 0 or more"),
        (lambda: MajorityVote(min_agreement=1.5), "reward.min_agreement is 1.5; write a share from 0"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
