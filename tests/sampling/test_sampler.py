"""What is sampled, with which probability, and what a draw may depend on."""

import copy
import math

import pytest
import torch
from conftest import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rl.evaluation import Evaluation
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler
from lit_rl.sampling.sampler import SampleKey, draw_uniforms
from lit_rl.sampling.top_k_top_p import inverse_cdf, kept_tokens, sample_tokens
from lit_rl.types import PromptBatch, Sample

KEY = SampleKey(seed=3, rollout=5)

MODELS: dict[str, dict] = {
    "llama": {},
    "gpt2": {},
    "bloom": {"attention": "eager"},
    "qwen3_moe": {"config": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}},
    # A window shorter than the prompts.
    "gemma3_text": {"config": {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}},
    "lfm2": {"config": {"layer_types": ["conv", "full_attention"]}},
}
OPTIONS: list[dict] = [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}]


def tiny_policy(model_type: str = "llama", **options) -> Policy:
    """A policy whose weights are large enough for every token to feel every other."""
    spec = tiny_spec(model_type, **{**MODELS[model_type], **options})
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.25)
    policy.disable_dropout()
    return policy


@pytest.fixture(scope="module", params=MODELS)
def any_policy(request) -> Policy:
    """A policy of each model type in train mode; not to be changed."""
    return tiny_policy(request.param)


@pytest.fixture(scope="module")
def llama() -> Policy:
    """A policy in train mode; not to be changed."""
    return tiny_policy()


PROMPTS = [[5, 17, 9], [30, 4, 22, 8, 41, 12, 50], [7], [11, 3, 28, 19, 6]]


def prompts_of(numbers: list[int]) -> PromptBatch:
    """The given ones of four prompts of 3, 7, 1 and 5 tokens."""
    return PromptBatch.pad([PROMPTS[n] for n in numbers], [[] for _ in numbers], [Sample("", "", "", n) for n in numbers], 0)


def completions(rollouts: Rollouts) -> list[list[int]]:
    return [row[:length] for row, length in zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True)]


# --- greedy ------------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_generate(any_policy):
    policy, prompts = copy.deepcopy(any_policy).eval(), prompts_of([0, 1, 2, 3])
    rollouts = Sampler(max_new_tokens=20, temperature=0).sample(policy, prompts, 1, KEY)
    generated = policy.causal_lm.generate(
        input_ids=prompts.ids, attention_mask=prompts.mask.long(), do_sample=False, max_new_tokens=20
    )[:, prompts.ids.shape[1] :]
    expected = []
    for row in generated.tolist():
        ends = [place for place, token in enumerate(row) if token in policy.end_tokens]
        expected.append(row[: ends[0] + 1] if ends else row)
    assert completions(rollouts) == expected


def test_greedy_log_probabilities_are_untempered(llama):
    rollouts = Sampler(max_new_tokens=6, temperature=0).sample(llama, prompts_of([0, 1]), 1, KEY)
    assert torch.allclose(llama.score(rollouts).logprobs, rollouts.logprobs, atol=1e-4)


# --- sampling and scoring agree ----------------------------------------------------------------------------------


def assert_ratio_is_one(policy: Policy, options: dict) -> None:
    rollouts = Sampler(max_new_tokens=12, **options).sample(policy, prompts_of([0, 1, 2, 3]), 4, KEY)
    scores = policy.score(rollouts)
    assert bool(((scores.logprobs - rollouts.logprobs).abs() < 1e-4).all()), options
    assert bool(((scores.entropies - rollouts.entropies).abs() < 1e-4).all()), options


def test_the_learners_ratio_to_the_sampler_is_one_for_every_model(any_policy):
    assert_ratio_is_one(any_policy, OPTIONS[-1])


def test_the_learners_ratio_to_the_sampler_is_one_for_every_option(llama):
    for options in OPTIONS[:-1]:
        assert_ratio_is_one(llama, options)


def test_sampled_tokens_lie_in_their_recorded_support(llama):
    for options in OPTIONS[1:]:
        rollouts = Sampler(max_new_tokens=12, **options).sample(llama, prompts_of([0, 1, 2, 3]), 8, KEY)
        kept = rollouts.support.ids.split(rollouts.support.counts[rollouts.mask].tolist())
        sampled = rollouts.completion_ids[rollouts.mask].tolist()
        assert all(token in ids.tolist() for token, ids in zip(sampled, kept, strict=True)), options
        assert int(rollouts.support.counts[~rollouts.mask].sum()) == 0, options


def test_top_k_keeps_k_tokens_at_every_position(llama):
    rollouts = Sampler(max_new_tokens=12, top_k=5).sample(llama, prompts_of([0, 1]), 4, KEY)
    assert set(rollouts.support.counts[rollouts.mask].tolist()) == {5}


def test_without_top_k_and_top_p_no_support_is_recorded(llama):
    assert Sampler(max_new_tokens=2, temperature=0.7).sample(llama, prompts_of([0]), 2, KEY).support is None


# --- frequencies -------------------------------------------------------------------------------------------------

# Upper 0.1 % points of the chi-square distribution by degrees of freedom.
CRITICAL = {1: 10.83, 3: 16.27, 4: 18.47, 10: 29.59}


def chi_square(counts: list[int], chances: list[float]) -> float:
    """Pearson's statistic of counted draws against their chances."""
    total = sum(counts)
    return sum((count - chance * total) ** 2 / (chance * total) for count, chance in zip(counts, chances, strict=True))


@pytest.mark.parametrize(
    ("options", "chances"),
    [
        ((1.0, 0, 1.0), [0.4, 0.3, 0.2, 0.1]),
        ((0.5, 0, 1.0), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),  # squares
        ((1.0, 2, 1.0), [4 / 7, 3 / 7]),
        ((1.0, 0, 0.6), [4 / 7, 3 / 7]),  # 0.4 is less than 0.6, 0.4 + 0.3 is not
        ((0.5, 3, 0.8), [16 / 25, 9 / 25]),  # squares 16 9 4 of 29: 0.552 is less than 0.8, 0.862 is not
    ],
)
def test_draws_are_as_frequent_as_their_chances(options, chances):
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    counts = (
        sample_tokens(logits, torch.full((len(logits),), options[0]), *options[1:], uniform)
        .tokens.bincount(minlength=4)
        .tolist()
    )
    assert counts[len(chances) :] == [0] * (4 - len(chances))
    assert chi_square(counts[: len(chances)], chances) < CRITICAL[len(chances) - 1]


def test_sampled_tokens_are_as_frequent_as_the_model_says(llama):
    prompts = prompts_of([1])
    with torch.no_grad():
        logits = llama.causal_lm(input_ids=prompts.ids).logits[0, -1]
    for options in ({}, {"temperature": 0.7}, {"top_k": 5}):
        likely = (logits / options.get("temperature", 1.0)).topk(options.get("top_k", len(logits)))
        chances = likely.values.softmax(0)
        rollouts = Sampler(max_new_tokens=1, **options).sample(llama, prompts, 4000, KEY)
        counts = rollouts.completion_ids[:, 0].bincount(minlength=len(logits))[likely.indices]
        assert int(counts.sum()) == 4000
        # The ten most likely tokens, and all others together.
        cells = [torch.cat([values[:10], values[10:].sum(0, keepdim=True)]).tolist() for values in (counts, chances)]
        if options == {"top_k": 5}:
            cells = [counts.tolist(), chances.tolist()]
        assert chi_square(*cells) < CRITICAL[len(cells[0]) - 1], options


# --- what top-k and top-p keep -----------------------------------------------------------------------------------


def kept(chances: list[float], top_k: int, top_p: float) -> list[int]:
    mask = kept_tokens(torch.tensor([chances]).log(), top_k, top_p)
    return mask[0].nonzero()[:, 0].tolist()


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    assert kept([0.1, 0.5, 0.15, 0.25], 0, 0.7) == [1, 3]


def test_top_p_stops_where_the_threshold_is_reached_exactly():
    assert kept([0.125, 0.5, 0.125, 0.25], 0, 0.75) == [1, 3]


def test_top_p_keeps_a_token_that_alone_holds_more():
    assert kept([0.05, 0.9, 0.05], 0, 0.3) == [1]


def test_top_p_of_almost_nothing_is_greedy():
    choice = sample_tokens(torch.tensor([[0.1, 0.2, 0.15]]), torch.ones(1), 0, 1e-6, torch.tensor([0.999]))
    assert choice.tokens.tolist() == [1]
    assert choice.logprobs.tolist() == [0.0]
    assert choice.entropies.tolist() == [0.0]


def test_top_p_keeps_tokens_that_tie_with_the_crossing_one():
    assert kept([0.5, 0.25, 0.25], 0, 0.6) == [0, 1, 2]


def test_a_nucleus_of_any_size_is_that_of_a_full_sort():
    logp = torch.randn(6, 3000, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log_softmax(-1)
    descending, order = logp.exp().sort(dim=-1, descending=True)
    before = descending.cumsum(-1) - descending
    for top_p in (0.2, 0.5, 0.9, 0.999):
        expected = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before < top_p)
        assert torch.equal(kept_tokens(logp, 0, top_p), expected), top_p


def test_top_k_keeps_tokens_that_tie_with_the_last():
    assert kept([0.2, 0.4, 0.2, 0.2], 2, 1.0) == [0, 1, 2, 3]


def test_top_p_is_taken_of_what_top_k_left():
    # Of 0.4 and 0.3 the first alone holds 4/7 = 0.571.
    assert kept([0.4, 0.3, 0.2, 0.1], 2, 0.55) == [0]
    assert kept([0.4, 0.3, 0.2, 0.1], 2, 0.6) == [0, 1]


def test_a_top_k_that_keeps_everything_is_none():
    for top_k in (0, 3, 100):
        assert kept_tokens(torch.zeros(1, 3), top_k, 1.0) is None, top_k


def test_log_probability_and_entropy_are_those_of_the_kept_tokens():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    choice = sample_tokens(logits, torch.ones(1), 0, 0.6, torch.tensor([0.9]))
    # 0.5 and 0.3 are kept: 5/8 and 3/8.
    assert choice.tokens.tolist() == [1]
    assert float(choice.logprobs) == pytest.approx(math.log(3 / 8), abs=1e-6)
    assert float(choice.entropies) == pytest.approx(math.log(8) - 5 / 8 * math.log(5) - 3 / 8 * math.log(3), abs=1e-6)


def test_a_uniform_number_picks_the_token_whose_share_it_falls_into():
    chances = torch.tensor([0.25, 0.5, 0.25]).expand(5, 3)
    assert inverse_cdf(chances, torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75])).tolist() == [0, 0, 1, 1, 2]


def test_a_uniform_number_that_was_rounded_up_to_one_picks_the_last_token_with_probability():
    assert inverse_cdf(torch.tensor([[0.25, 0.75, 0.0]]), torch.tensor([1.0])).tolist() == [1]


LAST = 1 - 2**-24  # the largest float32 below 1


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.1, 0.3, 1.0]), min_size=1, max_size=60).filter(any),
    st.sampled_from([0.0, 1e-30, 0.5, 0.999999, LAST]) | st.floats(0, LAST, width=32),
)
def test_a_token_without_probability_is_never_drawn(weights, uniform):
    weights = torch.tensor([weights])
    probabilities = weights / weights.sum()
    token = int(inverse_cdf(probabilities, torch.tensor([uniform])))
    assert probabilities[0, token] > 0


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, LAST]), st.integers(1, 5), st.sampled_from([0.05, 0.5, 1.0]))
def test_a_token_outside_the_support_is_never_drawn(seed, uniform, top_k, top_p):
    logits = 10 * torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
    choice = sample_tokens(logits, torch.full((1,), 0.7), top_k, top_p, torch.tensor([uniform]))
    assert bool(choice.kept[0, choice.tokens[0]])
    assert bool(choice.logprobs.isfinite().all())


# --- what a draw depends on --------------------------------------------------------------------------------------


def test_the_completions_of_a_group_vary(llama):
    rows = completions(Sampler(max_new_tokens=12).sample(llama, prompts_of([0, 1]), 8, KEY))
    assert len({tuple(row) for row in rows[:8]}) == 8
    assert len({tuple(row) for row in rows[8:]}) == 8


def test_two_prompts_that_read_the_same_have_their_own_draws(llama):
    batch = prompts_of([0, 0])
    batch.samples[1] = Sample("", "", "", 77)
    rows = completions(Sampler(max_new_tokens=12).sample(llama, batch, 1, KEY))
    assert rows[0] != rows[1]


def test_another_key_gives_other_draws_and_the_same_key_the_same(llama):
    def drawn(key: SampleKey) -> list[list[int]]:
        return completions(Sampler(max_new_tokens=12).sample(llama, prompts_of([0, 1]), 4, key))

    first = drawn(KEY)
    assert drawn(KEY) == first
    for other in (SampleKey(4, 5), SampleKey(3, 6), SampleKey(3, 5, 1)):
        assert drawn(other) != first, other


def test_draws_do_not_depend_on_the_other_prompts_of_the_batch(any_policy):
    sampler = Sampler(max_new_tokens=12, temperature=0.9, top_p=0.95)
    together = completions(sampler.sample(any_policy, prompts_of([0, 1, 2, 3]), 4, KEY))
    for numbers in ([0], [2], [3, 1, 0, 2]):
        rows = completions(sampler.sample(any_policy, prompts_of(numbers), 4, KEY))
        assert rows == [row for number in numbers for row in together[4 * number : 4 * number + 4]], numbers


def test_draws_neither_depend_on_the_global_generator_nor_move_it(llama):
    prompts, sampler = prompts_of([0, 1]), Sampler(max_new_tokens=12)
    torch.manual_seed(1)
    first = completions(sampler.sample(llama, prompts, 4, KEY))
    after = torch.rand(1)
    torch.manual_seed(2)
    assert completions(sampler.sample(llama, prompts, 4, KEY)) == first
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


def test_uniform_numbers_lie_from_zero_up_to_but_not_one():
    uniforms = draw_uniforms(KEY, list(range(40)), 8, 200)
    assert uniforms.shape == (320, 200)
    assert uniforms.dtype == torch.float32
    assert float(uniforms.min()) >= 0
    assert float(uniforms.max()) < 1
    assert float(uniforms.mean()) == pytest.approx(0.5, abs=0.005)  # 0.2887 / sqrt(64000) = 0.0011


# --- ends --------------------------------------------------------------------------------------------------------


def test_a_completion_ends_with_its_first_end_token(llama, monkeypatch):
    prompts, sampler, end_tokens = prompts_of([0, 1, 2, 3]), Sampler(max_new_tokens=12), [10, 20, 30, 40, 50]
    monkeypatch.setattr(llama, "end_tokens", [])
    endless = sampler.sample(llama, prompts, 8, KEY).completion_ids.tolist()
    monkeypatch.setattr(llama, "end_tokens", end_tokens)
    rollouts = sampler.sample(llama, prompts, 8, KEY)
    # The draws are keyed, so ending rows (and dropping them from the batch) only cuts what would have been drawn.
    expected = []
    for row in endless:
        ends = [place for place, token in enumerate(row) if token in end_tokens]
        expected.append(row[: ends[0] + 1] if ends else row)
    assert len({len(row) for row in expected}) > 5
    assert completions(rollouts) == expected
    assert rollouts.truncated.tolist() == [row[-1] not in end_tokens for row in expected]


def test_a_completion_that_ends_at_the_limit_is_not_truncated(llama, monkeypatch):
    monkeypatch.setattr(llama, "end_tokens", list(range(llama.vocabulary)))
    rollouts = Sampler(max_new_tokens=1).sample(llama, prompts_of([0]), 2, KEY)
    assert rollouts.lengths.tolist() == [1, 1]
    assert rollouts.truncated.tolist() == [False, False]


def test_nothing_is_recorded_after_the_end_of_a_completion(llama, monkeypatch):
    monkeypatch.setattr(llama, "end_tokens", [10, 20, 30, 40, 50])
    rollouts = Sampler(max_new_tokens=12).sample(llama, prompts_of([0, 1, 2, 3]), 8, KEY)
    after = ~rollouts.mask
    assert bool(after.any())
    for values in (rollouts.completion_ids, rollouts.logprobs, rollouts.entropies):
        assert float(values[after].abs().max()) == 0


def test_sampling_stops_when_every_completion_has_ended(llama, monkeypatch):
    monkeypatch.setattr(llama, "end_tokens", list(range(llama.vocabulary)))
    assert Sampler(max_new_tokens=100).sample(llama, prompts_of([0, 1]), 4, KEY).completion_ids.shape == (8, 1)


# --- the policy is left as it was --------------------------------------------------------------------------------


def test_the_mode_of_the_policy_is_restored():
    policy = tiny_policy()
    for training in (True, False):
        policy.train(training)
        Sampler(max_new_tokens=2).sample(policy, prompts_of([0]), 2, KEY)
        assert {module.training for module in policy.modules()} == {training}


def test_dropout_does_not_reach_the_sampler():
    spec = tiny_spec("gpt2")
    policy = Policy(spec, load_tokenizer(spec)).train()
    sampler, prompts = Sampler(max_new_tokens=8), prompts_of([0, 1])
    assert torch.equal(sampler.sample(policy, prompts, 4, KEY).logprobs, sampler.sample(policy, prompts, 4, KEY).logprobs)


def test_gradient_checkpointing_does_not_change_the_draws():
    sampler, prompts = Sampler(max_new_tokens=12), prompts_of([0, 1])
    rows = [
        completions(sampler.sample(tiny_policy(gradient_checkpointing=on).train(), prompts, 4, KEY)) for on in (False, True)
    ]
    assert rows[0] == rows[1]


def test_rollouts_carry_no_graph(llama):
    assert not Sampler(max_new_tokens=2).sample(llama, prompts_of([0]), 2, KEY).logprobs.requires_grad


# --- at the door -------------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(llama):
    with pytest.raises(ValueError, match=r"^a prompt of 7 tokens and 122 new ones exceed the model's 128 positions.*$"):
        Sampler(max_new_tokens=122).sample(llama, prompts_of([0, 1]), 2, KEY)


def test_an_evaluation_that_does_not_fit_names_its_own_option(llama):
    for sampler in (Evaluation(max_new_tokens=122).greedy, Evaluation(max_new_tokens=122).sampled):
        with pytest.raises(ValueError, match=r"positions; lower evaluation\.max_new_tokens or shorten the prompts\.$"):
            sampler.sample(llama, prompts_of([0, 1]), 1, KEY)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_prompt_that_just_fits_is_sampled_to_its_limit(model_type):
    policy = tiny_policy(model_type)
    policy.end_tokens = []
    rollouts = Sampler(max_new_tokens=121).sample(policy, prompts_of([1]), 1, KEY)
    assert rollouts.lengths.tolist() == [121]
    assert bool(policy.score(rollouts).logprobs.isfinite().all())


def test_a_model_without_positions_has_no_limit():
    policy = tiny_policy("bloom")
    policy.end_tokens = []
    assert Sampler(max_new_tokens=130).sample(policy, prompts_of([0]), 1, KEY).lengths.tolist() == [130]


def test_a_setting_out_of_range_is_refused_by_name_and_value():
    for name, value in [("max_new_tokens", 0), ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)]:
        with pytest.raises(ValueError, match=rf"^sampler\.{name} is {value}; write .*$"):
            Sampler(**{name: value})


def test_a_single_token_needs_no_copy_of_the_prompts(llama, monkeypatch):
    """Groups are often large if one token is sampled, as in RPT without reasoning."""

    def refuse(*args):
        raise AssertionError("the cache was repeated for rows that never use it")

    monkeypatch.setattr("lit_rl.sampling.decoding.repeat_cache", refuse)
    alone = Sampler(max_new_tokens=1, max_rows=8).sample(llama, prompts_of([0, 1, 2, 3]), 4, KEY)
    assert alone.lengths.tolist() == [1] * 16
    torch.testing.assert_close(alone.logprobs, llama.score(alone).logprobs, rtol=1e-4, atol=1e-5)
