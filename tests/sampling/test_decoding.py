"""Continuous batching: rows that leave, prompts that enter, and prompts held once per group change no draw."""

import copy
import random

import pytest
import torch
from conftest import tiny_spec

from lit_rl.kernels.attention import use_attention
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler, decoding
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import PromptBatch, Sample

HYBRID = {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {
    "llama": {"num_key_value_heads": 1},
    "qwen3_moe": EXPERTS,
    "gpt2": {},
    "bloom": {},
    "lfm2": HYBRID,
    "lfm2_moe": HYBRID | EXPERTS,
    "gemma3_text": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
}
SHARED, REPEATED = 1, 10_000  # tokens from which on prompts are held once per group
GROUP = 4


def policy_of(model_type: str) -> Policy:
    """A policy with weights large enough for every key to matter."""
    spec = tiny_spec(model_type, config={"initializer_range": 0.3, **MODELS[model_type]})
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    return policy


@pytest.fixture(scope="module", params=MODELS)
def any_policy(request) -> Policy:
    """A policy of each model type; not to be changed."""
    return policy_of(request.param)


@pytest.fixture(scope="module")
def llama() -> Policy:
    """A policy; not to be changed."""
    return policy_of("llama")


def ragged_prompts() -> PromptBatch:
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 40) for _ in range(draw.randint(2, 20))] for _ in range(9)]
    return PromptBatch.pad(prompts, [[] for _ in prompts], [Sample("", "", "", n) for n in range(9)], 0)


def sampled(policy: Policy, monkeypatch, shortest: int, **options):
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", shortest)
    return Sampler(max_new_tokens=24, **options).sample(policy, ragged_prompts(), GROUP, SampleKey(1, 0))


def assert_same_draws(rows: Rollouts, whole: Rollouts, case: str) -> None:
    assert torch.equal(rows.completion_ids, whole.completion_ids), case
    assert torch.equal(rows.lengths, whole.lengths), case
    assert torch.allclose(rows.logprobs, whole.logprobs, atol=1e-4), case


def test_neither_row_limits_nor_shared_prompts_change_a_draw(any_policy, monkeypatch):
    whole = sampled(any_policy, monkeypatch, REPEATED)
    assert whole.lengths.float().mean() < 24, "rows finish at different times"
    assert_same_draws(sampled(any_policy, monkeypatch, REPEATED, max_rows=12), whole, "repeated prompts")
    if any_policy.capabilities.shares_keys:
        assert_same_draws(sampled(any_policy, monkeypatch, SHARED, max_rows=12), whole, "shared prompts")


def test_no_row_limit_changes_a_draw(llama, monkeypatch):
    whole = sampled(llama, monkeypatch, REPEATED)
    for shortest, max_rows in [(SHARED, 4), (SHARED, 20), (SHARED, 0), (REPEATED, 4), (REPEATED, 20)]:
        assert_same_draws(sampled(llama, monkeypatch, shortest, max_rows=max_rows), whole, f"{shortest}, {max_rows} rows")


def test_greedy_tokens_are_those_of_generate(any_policy, monkeypatch):
    policy, prompts = any_policy, ragged_prompts()
    rows = sampled(policy, monkeypatch, SHARED, max_rows=12, temperature=0.0)
    policy = copy.deepcopy(policy).eval()
    use_attention(policy.causal_lm, "eager" if policy.causal_lm.config.model_type == "bloom" else "sdpa")
    for number in (0, 4, 8):  # at the beginning, in between, and among the last that are admitted
        ids = prompts.ids[number][prompts.mask[number]][None]
        out = policy.causal_lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=policy.end_tokens,
        )[0, ids.shape[1] :]
        row = number * GROUP
        assert rows.completion_ids[row, : rows.lengths[row]].tolist() == out.tolist(), number


def test_sampled_log_probabilities_are_those_of_a_scoring_forward(any_policy, monkeypatch):
    rows = sampled(any_policy, monkeypatch, SHARED, max_rows=12, temperature=0.7, top_k=20, top_p=0.95)
    assert torch.allclose(any_policy.score(rows, details=False).logprobs, rows.logprobs, atol=1e-4)


def test_no_more_rows_are_decoded_at_a_time_than_allowed(llama, monkeypatch):
    widths, decode = [], llama.decode_step
    monkeypatch.setattr(llama, "decode_step", lambda tokens, *rest: widths.append(len(tokens)) or decode(tokens, *rest))
    for max_rows in (4, 20, 100):
        widths.clear()
        sampled(llama, monkeypatch, SHARED, max_rows=max_rows)
        assert max(widths) == min(max_rows, 36), max_rows


def test_waiting_prompts_enter_before_all_rows_have_left(llama, monkeypatch):
    prefilled, prefill = [], llama.prefill
    monkeypatch.setattr(llama, "prefill", lambda prompts: prefilled.append(len(prompts)) or prefill(prompts))
    sampled(llama, monkeypatch, SHARED, max_rows=12)
    assert prefilled[0] == 3
    assert len(prefilled) > 3, "one prompt at a time, as soon as there is room for its group"


def test_a_group_that_does_not_fit_is_refused(llama, monkeypatch):
    with pytest.raises(ValueError, match=r"sampler\.max_rows is 3 and a group has 4"):
        sampled(llama, monkeypatch, SHARED, max_rows=3)


def test_members_of_a_group_have_their_own_temperature(llama, monkeypatch):
    rows = sampled(llama, monkeypatch, SHARED, temperature=[0.5, 1.5])
    assert rows.temperature.tolist() == [0.5, 1.5, 0.5, 1.5] * 9


def test_a_row_with_its_own_temperature_is_the_one_that_all_rows_at_it_would_have(llama, monkeypatch):
    mixed = sampled(llama, monkeypatch, REPEATED, temperature=[0.5, 1.5, 1.0, 2.0])
    alike = sampled(llama, monkeypatch, REPEATED, temperature=1.5)
    for row in range(1, 36, GROUP):
        length = int(mixed.lengths[row])
        assert torch.equal(mixed.completion_ids[row, :length], alike.completion_ids[row, :length])


def test_temperatures_out_of_range_are_refused():
    for temperature in ([], [1.0, 0.0], [-1.0]):
        with pytest.raises(ValueError, match="temperature"):
            Sampler(temperature=temperature)


def test_models_on_the_attention_interface_hold_prompts_once(any_policy):
    # Bloom attends in code of its own, so it repeats them.
    assert any_policy.capabilities.shares_keys == (any_policy.causal_lm.config.model_type != "bloom")


def test_eager_attention_repeats_the_prompts():
    spec = tiny_spec("llama", attention="eager")
    policy = Policy(spec, load_tokenizer(spec))
    check_policy(policy)
    assert not policy.capabilities.shares_keys
