"""The decoding batch: rows that leave, prompts that enter, and prompts held once per group change no draw."""

import random

import pytest
import torch
from conftest import tiny_spec

from lit_rl.kernels.attention import use_attention
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Sampler
from lit_rl.sampling import batch as decoding
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import PromptBatch, Sample

HYBRID = {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
MODELS = {
    "llama": {"num_key_value_heads": 1},
    "qwen3_moe": {},
    "gpt2": {},
    "bloom": {},
    "lfm2": HYBRID,
    "lfm2_moe": HYBRID,
    "gemma3_text": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
}
SHARED, REPEATED = 1, 10_000  # from how many prompt tokens on prompts are held once per group
GROUP = 4


def policy_of(model_type: str) -> Policy:
    """Weights large enough for every key to matter."""
    spec = tiny_spec(model_type, config={"initializer_range": 0.3, **MODELS[model_type]})
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    return policy


def ragged_prompts() -> PromptBatch:
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 40) for _ in range(draw.randint(2, 20))] for _ in range(9)]
    return PromptBatch.pad(prompts, [[] for _ in prompts], [Sample("", "", "", n) for n in range(9)], 0)


def sampled(policy: Policy, monkeypatch, shortest: int, **options):
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", shortest)
    return Sampler(max_new_tokens=24, **options).sample(policy, ragged_prompts(), GROUP, SampleKey(1, 0))


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("max_rows", [4, 12, 20])
@pytest.mark.parametrize("shortest", [SHARED, REPEATED], ids=["shared", "repeated"])
def test_neither_row_limits_nor_shared_prompts_change_a_draw(model_type, max_rows, shortest, monkeypatch):
    policy = policy_of(model_type)
    whole = sampled(policy, monkeypatch, REPEATED)
    assert whole.lengths.float().mean() < 24, "rows finish at different times"
    rows = sampled(policy, monkeypatch, shortest, max_rows=max_rows)
    assert torch.equal(rows.completion_ids, whole.completion_ids)
    assert torch.equal(rows.lengths, whole.lengths)
    assert torch.allclose(rows.logprobs, whole.logprobs, atol=1e-4)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("shortest", [SHARED, REPEATED], ids=["shared", "repeated"])
def test_greedy_tokens_are_those_of_generate(model_type, shortest, monkeypatch):
    policy, prompts = policy_of(model_type), ragged_prompts()
    rows = sampled(policy, monkeypatch, shortest, max_rows=12, temperature=0.0)
    use_attention(policy.causal_lm, "eager" if model_type == "bloom" else "sdpa")
    policy.eval()
    for number in range(len(prompts)):
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
        assert rows.completion_ids[row, : rows.lengths[row]].tolist() == out.tolist()


@pytest.mark.parametrize("model_type", MODELS)
def test_sampled_log_probabilities_are_those_of_a_scoring_forward(model_type, monkeypatch):
    policy = policy_of(model_type)
    rows = sampled(policy, monkeypatch, SHARED, max_rows=12, temperature=0.7, top_k=20, top_p=0.95)
    assert torch.allclose(policy.score(rows, details=False).logprobs, rows.logprobs, atol=1e-4)


@pytest.mark.parametrize("max_rows", [4, 12, 20, 36, 100])
def test_no_more_rows_are_decoded_at_a_time_than_allowed(max_rows, monkeypatch):
    policy, widths = policy_of("llama"), []
    decode = policy.decode
    monkeypatch.setattr(policy, "decode", lambda tokens, *rest: widths.append(len(tokens)) or decode(tokens, *rest))
    sampled(policy, monkeypatch, SHARED, max_rows=max_rows)
    assert max(widths) == min(max_rows, 36)


def test_waiting_prompts_enter_before_all_rows_have_left(monkeypatch):
    policy, prefilled = policy_of("llama"), []
    prefill = policy.prefill
    monkeypatch.setattr(policy, "prefill", lambda prompts: prefilled.append(len(prompts)) or prefill(prompts))
    sampled(policy, monkeypatch, SHARED, max_rows=12)
    assert prefilled[0] == 3
    assert len(prefilled) > 3, "one prompt at a time, as soon as there is room for its group"


def test_a_group_that_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"sampler\.max_rows is 3 and a group has 4"):
        sampled(policy_of("llama"), monkeypatch, SHARED, max_rows=3)


def test_members_of_a_group_have_their_own_temperature(monkeypatch):
    rows = sampled(policy_of("llama"), monkeypatch, SHARED, temperature=[0.5, 1.5])
    assert rows.temperature.tolist() == [0.5, 1.5, 0.5, 1.5] * 9


def test_a_row_with_its_own_temperature_is_the_one_that_all_rows_at_it_would_have(monkeypatch):
    policy = policy_of("llama")
    mixed = sampled(policy, monkeypatch, REPEATED, temperature=[0.5, 1.5, 1.0, 2.0])
    alike = sampled(policy, monkeypatch, REPEATED, temperature=1.5)
    for row in range(1, 36, GROUP):
        length = int(mixed.lengths[row])
        assert torch.equal(mixed.completion_ids[row, :length], alike.completion_ids[row, :length])


@pytest.mark.parametrize("temperature", [[], [1.0, 0.0], [-1.0]])
def test_temperatures_out_of_range_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        Sampler(temperature=temperature)


def test_a_model_that_touches_its_keys_repeats_the_prompts():
    assert not policy_of("bloom").shares_keys


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "lfm2", "gemma3_text", "mistral"])
def test_a_model_on_the_attention_interface_holds_prompts_once(model_type):
    assert policy_of(model_type).shares_keys


def test_eager_attention_repeats_the_prompts():
    spec = tiny_spec("llama", attention="eager")
    policy = Policy(spec, load_tokenizer(spec))
    check_policy(policy)
    assert not policy.capabilities.shares_keys
