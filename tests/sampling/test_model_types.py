"""Model types: each samples and scores as transformers' eager attention does on single rows, or is refused at the start."""

import copy

import pytest
import torch
from conftest import tiny_spec

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler, decoding
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import PromptBatch, Sample

WINDOW = {"sliding_window": 4}
HEAD = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
LONG_ROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
RANKED = EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
PAD = {"pad_token_id": 0}  # a type whose own padding is outside of a tiny vocabulary

EQUAL = {
    "afmoe": EXPERTS | ALTERNATING | HEAD | {"num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "bitnet": {},
    "bloom": {},
    "cohere": {},
    "cohere2": ALTERNATING | {"sliding_window_pattern": 2},
    "cwm": ALTERNATING,
    "deepseek_v2": LATENT | {"n_group": 1},
    "deepseek_v3": LATENT,
    "diffllama": {},
    "ernie4_5": HEAD,
    "ernie4_5_moe": EXPERTS | {"moe_num_experts": 4, "moe_k": 2},
    "exaone4": ALTERNATING | HEAD,
    "falcon": {"num_kv_heads": 2, "alibi": False},
    "falcon_h1": MAMBA | HEAD | {"mamba_d_ssm": 64},
    "flex_olmo": EXPERTS,
    "gemma": HEAD,
    "gemma2": ALTERNATING | HEAD | {"attn_logit_softcapping": 2.0},
    "gemma3_text": ALTERNATING | HEAD,
    "gemma4_text": ALTERNATING
    | HEAD
    | {"global_head_dim": 16, "vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8},
    "glm": HEAD | PAD,
    "glm4": HEAD | PAD,
    "glm4_moe": RANKED | HEAD,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"window_size": 4, "attention_types": [[["local", "global"], 1]], "num_layers": 2},
    "gpt_neox": {},
    "gpt_oss": ALTERNATING | HEAD | EXPERTS,
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granite_swa": ALTERNATING | HEAD,
    "granitemoe": EXPERTS,
    "granitemoehybrid": EXPERTS | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "helium": HEAD,
    "hunyuan_v1_dense": HEAD,
    "jamba": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 16},
    "laguna": ALTERNATING | HEAD | EXPERTS,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {"num_key_value_heads": 1},
    "minicpm3": LATENT,
    "mistral": WINDOW,
    "mixtral": EXPERTS | WINDOW,
    "nanochat": {},
    "nemotron": HEAD,
    "olmo2": {},
    "olmo3": ALTERNATING,
    "olmo_hybrid": LINEAR,
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": LONG_ROPE | PAD,
    "qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": HEAD | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_text": LINEAR | HEAD,
    "qwen3_moe": EXPERTS | HEAD,
    "qwen3_next": LINEAR | EXPERTS | HEAD | {"shared_expert_intermediate_size": 32},
    "seed_oss": HEAD,
    "smollm3": ALTERNATING | PAD | {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": WINDOW,
    "vaultgemma": ALTERNATING | HEAD,
    "xglm": {"d_model": 32, "attention_heads": 2, "num_layers": 2, "ffn_dim": 64},
}
"""Types that are policies, with windows of 4 tokens and two kinds of layers if they have them."""

REFUSED = {
    "doge": {},
    "falcon_mamba": {},
    "llama4_text": HEAD | {"attention_chunk_size": 4, "num_local_experts": 4, "moe_layers": [1], "no_rope_layers": [1, 0]},
    "mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "phimoe": EXPERTS,  # at random in train mode, where two experts are nearly equal
    "minimax": EXPERTS | HEAD | {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"attention_window_size": 4, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "rwkv": {},
}
"""Types that are not: left padding, the cache or the decoder work otherwise."""

SHORT = ("gemma2", "mistral", "phi3", "lfm2")
"""Types in an ordinary run: capped scores, a window, a long rope, a convolution."""


def marked(types: dict) -> list:
    return [pytest.param(name, id=name, marks=[] if name in SHORT else pytest.mark.long) for name in types]


def new_policy(model_type: str, config: dict) -> Policy:
    """A policy whose weights make every token feel every other."""
    spec = tiny_spec(model_type, config=config)
    policy = Policy(spec, load_tokenizer(spec))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    policy.disable_dropout()
    return policy


def eager_logprobs(policy: Policy, rows: Rollouts) -> torch.Tensor:
    """(N, T) log-probabilities by transformers' eager model from each row alone."""
    model = policy.causal_lm
    eager = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    found = torch.zeros(rows.completion_ids.shape)
    for row, owner in enumerate(rows.prompt.tolist()):
        prompt, length = rows.prompts.ids[owner][rows.prompts.mask[owner]], int(rows.lengths[row])
        completion = rows.completion_ids[row, :length]
        logits = eager(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        found[row, :length] = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
    return found


@pytest.mark.parametrize("model_type", marked(EQUAL))
@torch.no_grad()
def test_sampled_and_learned_log_probabilities_are_the_eager_models(model_type, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 1)
    policy = new_policy(model_type, EQUAL[model_type])
    check_policy(policy)
    rows = Sampler(max_new_tokens=8).sample(policy, prompts(policy), 2, SampleKey(0, 0))
    expected = eager_logprobs(policy, rows)
    assert torch.allclose(rows.logprobs, expected, atol=2e-5), "sampler"
    assert torch.allclose(policy.score(rows).logprobs, expected, atol=2e-5), "learner"


@pytest.mark.long
@pytest.mark.parametrize("model_type", REFUSED)
def test_a_type_that_works_otherwise_is_refused(model_type):
    policy = new_policy(model_type, REFUSED[model_type])
    with pytest.raises(ValueError, match=f"model_type '{model_type}' cannot be a policy as configured"):
        check_policy(policy)


def prompts(policy: Policy) -> PromptBatch:
    """Prompts of 2 to 25 tokens: several windows beside less than one."""
    lengths = (25, 2, 11)
    ids = [torch.randint(3, policy.vocabulary, (length,)).tolist() for length in lengths]
    return PromptBatch.pad(ids, [[] for _ in ids], [Sample("", "", "", number) for number in range(3)], 0)
