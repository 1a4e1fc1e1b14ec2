"""Arms: each row of a question is drawn in its own style and at its own temperature, and scored so."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_spec
from vocabularies import CHATML, chatting

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Arm, ArmSampler, Sampler, decoding
from lit_rl.sampling.arms import default_arms
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.text.encoding import encode
from lit_rl.types import PromptBatch, Sample

KEY = SampleKey(seed=3, rollout=5)
QUESTIONS = ["How many are 2 and 3?", "Five of 7 birds fly away. How many stay?", "1 + 1?"]
STYLES = {"short": "Be short.", "long": "Think about it first, for as long as you want.", "plain": ""}
ARMS = [Arm("a", "short", 0.5), Arm("b", "long", 0.9), Arm("c", "short", 1.3), Arm("d", "plain", 0.7)]


def policy_of(model_type: str = "llama", **config) -> Policy:
    spec = tiny_spec(model_type, config={"initializer_range": 0.3, "max_position_embeddings": 256, **config})
    spec.tokenizer = "bytes"
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    return policy


@pytest.fixture(scope="module")
def llama() -> Policy:
    """A policy; not to be changed."""
    return policy_of()


def questions(tokenizer, numbers=(0, 1, 2)) -> PromptBatch:
    samples = [Sample(f"{QUESTIONS[n]}\n", "", "", n, question=QUESTIONS[n]) for n in numbers]
    return PromptBatch.pad(encode([sample.prompt for sample in samples], tokenizer), [[] for _ in samples], samples, 0)


def sampler(**options) -> ArmSampler:
    return ArmSampler(**{"max_new_tokens": 8, "arms": ARMS, "styles": STYLES, **options})


def drawn(policy: Policy, *, group_size=4, numbers=(0, 1, 2), choose=None, key=KEY, **options) -> Rollouts:
    arms = sampler(**options)
    arms.choose = choose
    return arms.sample(policy, questions(policy.tokenizer, numbers), group_size, key)


def few(key: SampleKey, number: int, size: int) -> list[int]:
    """Other arms for each question; two rows of the second question are of one style, and all of the third."""
    return [[3, 1, 0], [2, 3, 0], [0, 2, 2]][number]


def rows_of(rollouts: Rollouts) -> list[tuple]:
    """Question, arm and tokens of each row, in whatever order they stand."""
    columns = (rollouts.samples, rollouts.arm.tolist(), rollouts.completion_ids.tolist(), rollouts.lengths.tolist())
    return sorted((sample.number, arm, row[:length]) for sample, arm, row, length in zip(*columns, strict=True))


def test_the_rows_of_a_question_are_one_group_of_several_prompts(llama):
    rollouts = drawn(llama)
    assert rollouts.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # Arms a and c are of one style and so have one prompt.
    assert rollouts.arm.tolist() == [0, 2, 1, 3] * 3
    assert rollouts.prompt.tolist() == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8]
    assert rollouts.temperature.tolist() == pytest.approx([0.5, 1.3, 0.9, 0.7] * 3)
    assert [sample.number for sample in rollouts.prompts.samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [sample.prompt for sample in rollouts.prompts.samples[:3]] == [
        "Be short.\n\nHow many are 2 and 3?\n",
        "Think about it first, for as long as you want.\n\nHow many are 2 and 3?\n",
        "How many are 2 and 3?\n",
    ]


def test_arms_take_turns_in_a_larger_group(llama):
    rollouts = drawn(llama, group_size=6, numbers=[0])
    assert sorted(rollouts.arm.tolist()) == [0, 0, 1, 1, 2, 3]


def test_a_chosen_arm_may_come_twice(llama):
    rollouts = drawn(llama, group_size=3, choose=few)
    assert [(number, arm) for number, arm, _ in rows_of(rollouts)] == [
        *[(0, 0), (0, 1), (0, 3)],
        *[(1, 0), (1, 2), (1, 3)],
        *[(2, 0), (2, 2), (2, 2)],
    ]
    assert len(rollouts.prompts) == 3 + 2 + 1


def test_the_temperature_of_the_sampler_is_a_factor(llama):
    assert drawn(llama, numbers=[0], temperature=0.5).temperature.tolist() == pytest.approx([0.25, 0.65, 0.45, 0.35])


def test_an_arm_draws_as_a_plain_sampler_does_after_its_prompt(llama):
    """A single arm beside a sampler of its temperature and top_p, on the prompt that the arm shows."""
    arm = Arm("a", "short", 0.8, top_p=0.9)
    rollouts = drawn(llama, arms=[arm])
    plain = Sampler(max_new_tokens=8, temperature=0.8, top_p=0.9).sample(llama, rollouts.prompts, 4, KEY)
    assert torch.equal(rollouts.completion_ids, plain.completion_ids)
    assert torch.equal(rollouts.logprobs, plain.logprobs)


def test_rows_of_a_question_share_no_draw_though_their_arms_are_alike(llama):
    alike = [Arm(name, "plain", 1.0) for name in "abcd"]
    assert len({tuple(row) for _, _, row in rows_of(drawn(llama, arms=alike, numbers=[0]))}) == 4


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("llama", {}), ("lfm2", {"layer_types": ["conv", "full_attention"]}), ("gemma3_text", {"sliding_window": 8})],
)
def test_the_learner_scores_a_row_under_its_own_arm(model_type, config):
    policy = policy_of(model_type, **config)
    nuclei = [replace(arm, top_p=0.8 + 0.05 * number) for number, arm in enumerate(ARMS)]
    for arms in (ARMS, nuclei):
        rollouts = drawn(policy, arms=arms, choose=few, group_size=3)
        assert torch.allclose(policy.score(rollouts).logprobs, rollouts.logprobs, atol=1e-4)


def test_neither_row_limits_nor_shared_prompts_nor_other_questions_change_a_draw(llama, monkeypatch):
    for choose, group_size in ((None, 4), (few, 3)):
        monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 10_000)
        whole = rows_of(drawn(llama, choose=choose, group_size=group_size))
        alone = [rows_of(drawn(llama, choose=choose, group_size=group_size, numbers=[number])) for number in (0, 1, 2)]
        assert [row for rows in alone for row in rows] == whole
        for shared, max_rows in ((False, 4), (True, 0), (True, 5)):
            monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 1 if shared else 10_000)
            assert rows_of(drawn(llama, choose=choose, group_size=group_size, max_rows=max_rows)) == whole, (shared, max_rows)


def test_a_prompt_is_computed_once_for_each_style(llama, monkeypatch):
    sizes, prefill = [], llama.prefill
    monkeypatch.setattr(llama, "prefill", lambda prompts: sizes.append(len(prompts)) or prefill(prompts))
    drawn(llama, arms=None, styles={}, group_size=8)
    assert sizes == [6]  # three questions in two styles, for 24 rows


def test_the_eight_arms_of_the_default():
    assert ArmSampler().arm_names == tuple(f"{style}-0.{n}" for style in ("precise", "reflective") for n in (2, 3, 4, 5))
    assert {(arm.style, arm.top_p) for arm in default_arms()} == {("precise", 0.95), ("reflective", 0.9)}


def test_the_longest_style_counts_among_the_new_tokens():
    tokenizer = chatting(CHATML)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    arms = [Arm("a", "short", 1.0), Arm("b", "plain", 1.0)]
    found = sampler(arms=arms, styles={"short": "Be brief.", "plain": ""}).added_tokens(tokenizer)
    assert found == len(tokenizer(system, add_special_tokens=False)["input_ids"])
    assert sampler(arms=arms[1:]).added_tokens(tokenizer) == 0
    tokenizer.chat_template = None
    assert sampler(arms=arms).added_tokens(tokenizer) == len(tokenizer("Be short.\n\n")["input_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": []}, "are named nothing; name one or more"),
        ({"arms": [Arm("a", "short", 1.0), Arm("a", "long", 1.0)]}, "named a, a; name one or more, each once"),
        ({"arms": [Arm("a", "loud", 1.0)]}, "'a' has the style 'loud'; known are precise, reflective, short, long, plain"),
        ({"arms": [Arm("a", "short", 0.0)]}, "'a' has temperature 0.0 and top_p 1.0"),
        ({"arms": [Arm("a", "short", 1.0, top_p=1.5)]}, "'a' has temperature 1.0 and top_p 1.5"),
        ({"arms": [Arm("a/b", "short", 1.0)]}, "the name 'a/b' stands between slashes"),
        ({"arms": [Arm("a", "short", 1.0, 0.9), Arm("b", "short", 1.0)]}, "top_p is 1 for some arms only"),
        ({"temperature": [0.5, 1.0]}, "temperature is one factor"),
        ({"top_p": 0.9}, "top_p belongs to each arm"),
    ],
)
def test_arms_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_a_group_with_fewer_rows_than_arms_needs_somebody_to_choose():
    with pytest.raises(ValueError, match=r"model.group_size is 3 and sampler.arms has 4 arms"):
        sampler().check(3, [])
    chosen = sampler()
    chosen.choose = few
    chosen.check(3, [])


def test_a_sample_without_question_is_refused(llama):
    sample = Sample("1+1=", "", "", 7)
    with pytest.raises(ValueError, match="sample 7 has no question"):
        sampler().check(4, [sample])
    with pytest.raises(ValueError, match="sample 7 has no question"):
        sampler().sample(llama, PromptBatch.pad([[5]], [[]], [sample], 0), 4, KEY)
