"""The check at the start: what differs from transformers' eager attention is found, past windows and boundaries too."""

import pytest
import torch
from conftest import tiny_spec
from transformers import Gemma2ForCausalLM

from lit_rl.kernels import attention as attention_kernel
from lit_rl.kernels import fused_head, packing, softcap
from lit_rl.models import Policy, policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import PromptBatch, Sample

HALF_HEAD = 8  # half of the 16 features of a head, each with a factor of its own
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * HALF_HEAD,
    "long_factor": [4.0] * HALF_HEAD,
}


def new_policy(model_type: str, config: dict | None = None, **options) -> Policy:
    spec = tiny_spec(model_type, config=config, **options)
    made = Policy(spec, load_tokenizer(spec))
    made.disable_dropout()
    return made


def phi3(**options) -> Policy:
    return new_policy(
        "phi3", {"pad_token_id": 0, "original_max_position_embeddings": 16, "rope_parameters": dict(LONG_ROPE), **options}
    )


def without_cap(monkeypatch) -> None:
    """Attention of `lit_rl.kernels` as if it knew no cap."""
    attend = attention_kernel.attend
    monkeypatch.setitem(
        attention_kernel.AttentionInterface._global_mapping,
        attention_kernel.NAME,
        lambda *args, softcap=None, **options: attend(*args, **options),
    )


by_sdpa = pytest.mark.skipif(
    not Gemma2ForCausalLM._supports_sdpa, reason="this release of transformers runs Gemma 2 by eager attention alone"
)


@by_sdpa
def test_the_capped_scores_of_gemma2_are_packed_and_shared():
    found = new_policy("gemma2", {"head_dim": 16})
    check_policy(found)
    assert found.causal_lm.config._attn_implementation == "lit_rl"
    assert found.capabilities.packs
    assert found.capabilities.shares_keys


@by_sdpa
def test_a_dropped_cap_on_scores_is_found(monkeypatch):
    without_cap(monkeypatch)
    found = new_policy("gemma2", {"head_dim": 16})
    check_policy(found)
    assert found.causal_lm.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"differ by .* nats .*; write model\.policy\.attention: eager"):
        check_policy(new_policy("gemma2", {"head_dim": 16}, attention="sdpa"))


def test_a_long_rope_below_its_boundary_is_checked_and_sampled():
    found = phi3()
    check_policy(found)
    assert found.context == 16
    assert found.capabilities.packs


def test_a_row_that_crosses_the_boundary_of_a_long_rope_is_refused():
    prompts = PromptBatch.pad([[5] * 10], [[]], [Sample("", "", "", 0)], 0)
    with pytest.raises(ValueError, match=r"10 tokens and 7 new ones exceed the model's 16 positions \(past 16 its long rope"):
        Sampler(max_new_tokens=7).sample(phi3(), prompts, 1, SampleKey(0, 0))


def test_rows_past_the_boundary_of_a_long_rope_are_found(monkeypatch):
    monkeypatch.setattr(policy, "position_limit", lambda config: config.max_position_embeddings)
    with pytest.raises(ValueError, match="'phi3' cannot be a policy as configured: log-probabilities of the sampler differ"):
        check_policy(phi3())


def test_probability_of_ids_without_a_token_is_found(monkeypatch):
    made = new_policy("llama", {"vocab_size": 200})
    assert made.missing is not None
    check_policy(made)
    monkeypatch.setattr(fused_head, "without_missing", lambda logits, missing: logits)
    with pytest.raises(ValueError, match="differ by inf nats"):
        check_policy(made)


def test_a_window_that_packing_ignores_is_found(monkeypatch):
    attend = packing.attend
    monkeypatch.setattr(packing, "attend", lambda *args: attend(*args[:5], 0, *args[6:]))
    found = new_policy("mistral", {"sliding_window": 4096})
    check_policy(found)
    assert not found.capabilities.packs


def test_a_check_draws_no_number_and_leaves_the_model_as_it_was():
    made = new_policy("llama").train()
    before, weights = torch.get_rng_state(), [weight.clone() for weight in made.parameters()]
    check_policy(made)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, weights, made.parameters()))
    assert made.training


def test_scores_are_capped():
    # 2 tanh(4 / 2) = 1.92806
    assert softcap.soft_cap(torch.tensor([4.0]), 2.0).item() == pytest.approx(1.92806, abs=1e-5)


def test_capped_attention_of_two_keys():
    # Scores 4 and 0, capped at 2: 1.92806 and 0; weights 0.87303 and 0.12697 of the values 1 and 0.
    query, keys, values = torch.tensor([[[[4.0]]]]), torch.tensor([[[[1.0], [0.0]]]]), torch.tensor([[[[1.0], [0.0]]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert softcap.capped_attention(query, keys, values, mask, 1.0, 2.0).item() == pytest.approx(0.87303, abs=1e-5)
