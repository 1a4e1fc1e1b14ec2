"""Model types: each samples and scores as transformers' eager attention does on single rows, or is refused at the start."""

import copy

import pytest
import torch
from conftest import tiny_spec

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
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
EXTRA = {
    "TYPES": {},
}


def outcome(model_type: str, config: dict, monkeypatch) -> tuple[str, float]:
    """What the check says, and the largest difference of log-probabilities from the model's own, of sampler and learner."""
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 1)
    spec = tiny_spec(model_type, config=config)
    policy = Policy(spec, load_tokenizer(spec))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    policy.disable_dropout()
    reference = type(policy.causal_lm)._from_config(copy.deepcopy(policy.causal_lm.config), attn_implementation="eager")
    reference.load_state_dict(policy.causal_lm.state_dict())
    try:
        check_policy(policy)
    except ValueError as error:
        return f"refused: {error}", 0.0
    rows = Sampler(max_new_tokens=8).sample(policy, prompts(policy), 2, SampleKey(0, 0))
    scores = policy.score(rows).logprobs.detach()
    difference = 0.0
    for row, owner in enumerate(rows.prompt.tolist()):
        prompt, length = rows.prompts.ids[owner][rows.prompts.mask[owner]], int(rows.lengths[row])
        ids = torch.cat([prompt, rows.completion_ids[row, :length]])[None]
        with torch.no_grad():
            logp = reference.eval()(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logp.gather(1, rows.completion_ids[row, :length, None])[:, 0]
        for found in (scores, rows.logprobs):
            difference = max(difference, float((found[row, :length] - own).abs().max()))
    named = [name for name in ("packs", "shares_keys", "shares_prompts") if getattr(policy.capabilities, name)]
    return f"{policy.causal_lm.config._attn_implementation} {' '.join(named)}", difference


def prompts(policy: Policy) -> PromptBatch:
    """Prompts of 2 to 25 tokens: several windows beside less than one."""
    lengths = (25, 2, 11)
    ids = [torch.randint(3, policy.vocabulary, (length,)).tolist() for length in lengths]
    return PromptBatch.pad(ids, [[] for _ in ids], [Sample("", "", "", number) for number in range(3)], 0)
