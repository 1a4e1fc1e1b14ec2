"""Scores of shared prompts against plain forwards of single rows; dropout, adapters, the reference and the head."""

import pytest
import torch
from conftest import tiny_spec
from torch import Tensor, nn

from lit_rl.models import LoRASpec, Policy
from lit_rl.models.loading import end_tokens, load_tokenizer
from lit_rl.models.reference import Reference
from lit_rl.rollouts import Rollouts, Support
from lit_rl.types import PromptBatch, Sample, TokenBatch

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}

# How far the shared prompts may stand from plain rows, as norm of the difference over norm. Rounding in float64 is 1e-16;
# all but gpt2 compute norms, rotary angles or routing in float32 whatever the weights are (1e-7, summed over layers).
MODELS: dict[str, tuple[float, dict]] = {
    "gpt2": (1e-10, {}),
    "llama": (1e-6, {}),
    "qwen2": (1e-6, {}),
    "qwen3": (1e-6, {"config": {"head_dim": 16}}),
    "mixtral": (1e-6, {"config": {"num_local_experts": 4}}),
    "qwen3_moe": (1e-6, {"config": MOE}),
    # A window shorter than the prompts, so that the cache drops what lies before it.
    "gemma3_text": (
        2e-6,
        {"config": {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}},
    ),
    # Weights in float32: its own mask overflows to NaN in float64, and it has no sdpa.
    "bloom": (5e-6, {"attention": "eager", "dtype": "float32"}),
    "lfm2": (1e-6, {"config": {"layer_types": ["conv", "full_attention"]}}),
}


def tiny_policy(model_type: str, **options) -> Policy:
    """A policy in train mode without dropout, its weights large enough for every token to feel every other."""
    _, settings = MODELS.get(model_type, (0, {}))
    spec = tiny_spec(model_type, **{"dtype": "float64", **settings, **options})
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    if model_type in ("mixtral", "qwen3_moe"):
        policy.causal_lm.set_experts_implementation("eager")  # the grouped product takes no float64
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.25)
    policy.disable_dropout()
    return policy


def ragged(policy: Policy, **fields) -> Rollouts:
    """Prompts of 3, 7, 1 and 5 tokens with two completions each, of 1 to 6 tokens."""
    prompts = [torch.randint(3, policy.vocabulary, (length,)).tolist() for length in (3, 7, 1, 5)]
    batch = PromptBatch.pad(prompts, [[] for _ in prompts], [Sample("", "", "", n) for n in range(4)], pad_id=0)
    lengths = torch.tensor([4, 1, 6, 2, 3, 6, 5, 1])
    mask = torch.arange(6) < lengths[:, None]
    ids = torch.randint(3, policy.vocabulary, (8, 6)) * mask
    zeros, ones = torch.zeros(8, 6), torch.ones(8)
    settings = {"logprobs": zeros, "entropies": zeros, "temperature": ones, "truncated": ones == 0, **fields}
    return Rollouts(batch, 2, completion_ids=ids, lengths=lengths, **settings)


def row_by_row(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Log-probabilities (N, T) from one plain forward per row: no padding, no cache, the model's own logits."""
    rows = []
    for row, owner in enumerate(rollouts.prompt.tolist()):
        prompt = rollouts.prompts.ids[owner][rollouts.prompts.mask[owner]]
        completion = rollouts.completion_ids[row, : rollouts.lengths[row]]
        logits = policy.model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0]
        logp = (logits[len(prompt) - 1 : -1] / rollouts.temperature[row]).log_softmax(-1)
        picked = logp.gather(1, completion[:, None])[:, 0]
        rows.append(nn.functional.pad(picked, (0, rollouts.completion_ids.shape[1] - len(picked))))
    return torch.stack(rows)


def gradients(policy: Policy, logprobs: Tensor) -> dict[str, Tensor]:
    """The gradient of a sum in which every token weighs differently, by parameter."""
    named = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    weights = torch.linspace(0.5, 2, logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs)
    found = torch.autograd.grad((weights * logprobs).sum(), list(named.values()), allow_unused=True)
    return {name: value for name, value in zip(named, found, strict=True) if value is not None}


def distance(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm; 0 where both are 0."""
    return float((value - expected).detach().norm() / expected.detach().norm().clamp(min=1e-300))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    distances = {name: distance(found[name], expected[name]) for name in found}
    assert max(distances.values()) <= tolerance, {name: far for name, far in distances.items() if far > tolerance}


# --- shared prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODELS)
def test_scores_of_shared_prompts_are_those_of_plain_rows(model_type):
    policy = tiny_policy(model_type)
    rollouts = ragged(policy)
    assert distance(policy.score(rollouts).logprobs, row_by_row(policy, rollouts)) <= MODELS[model_type][0]


@pytest.mark.parametrize("model_type", MODELS)
def test_gradients_of_shared_prompts_are_those_of_plain_rows(model_type):
    policy = tiny_policy(model_type)
    rollouts = ragged(policy)
    shared = gradients(policy, policy.score(rollouts).logprobs)
    assert_same_gradients(shared, gradients(policy, row_by_row(policy, rollouts)), MODELS[model_type][0])


@pytest.mark.parametrize("model_type", MODELS)
def test_gradient_checkpointing_scores_the_same(model_type):
    policy, checkpointing = tiny_policy(model_type), tiny_policy(model_type, gradient_checkpointing=True)
    rollouts = ragged(policy)
    shared, whole = policy.score(rollouts).logprobs, checkpointing.score(rollouts).logprobs
    assert distance(whole, shared) <= MODELS[model_type][0]
    assert_same_gradients(gradients(checkpointing, whole), gradients(policy, shared), MODELS[model_type][0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_left_padding_makes_no_nan(model_type, checkpointing):
    policy = tiny_policy(model_type, dtype="float32", gradient_checkpointing=checkpointing)
    logprobs = policy.score(ragged(policy)).logprobs
    assert logprobs.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(policy, logprobs).values())


def test_rows_are_scored_at_their_own_temperature():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy, temperature=torch.linspace(0.5, 2, 8))
    assert distance(policy.score(rollouts).logprobs, row_by_row(policy, rollouts)) <= 1e-10


def test_rows_left_by_merging_are_scored_on_their_own_prompts():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy)
    rollouts.completion_ids[1], rollouts.lengths[1] = rollouts.completion_ids[0], rollouts.lengths[0]
    merged = rollouts.merge_duplicates()
    assert len(merged) == 7
    assert distance(policy.score(merged).logprobs, row_by_row(policy, merged)) <= 1e-10


@pytest.mark.parametrize("owners", [[3, 2, 0, 1, 1, 0, 2, 3], [0, 0, 0, 1, 1, 2, 3, 3]])
def test_rows_are_scored_on_the_prompts_that_they_name(owners):
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy, prompt_index=torch.tensor(owners))
    assert distance(policy.score(rollouts).logprobs, row_by_row(policy, rollouts)) <= 1e-10


def test_completions_of_one_token_are_scored_from_the_prompt_alone():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy)
    rollouts.lengths = torch.ones_like(rollouts.lengths)
    rollouts.completion_ids = rollouts.completion_ids[:, :1]
    assert distance(policy.score(rollouts).logprobs, row_by_row(policy, rollouts)) <= 1e-10


def test_values_behind_the_end_of_a_row_are_exactly_zero():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy)
    scores = policy.score(rollouts, entropy_grad=True)
    behind = ~rollouts.mask
    assert scores.logprobs[behind].abs().max() == 0
    assert scores.entropies[behind].abs().max() == 0
    assert not scores.hits[behind].any()


def test_tokens_behind_the_end_of_a_row_change_nothing():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy)
    before = policy.score(rollouts).logprobs
    rollouts.completion_ids = rollouts.completion_ids.masked_fill(~rollouts.mask, 7)
    assert torch.equal(policy.score(rollouts).logprobs, before)


def test_rows_are_scored_on_the_support_that_they_were_drawn_from():
    policy = tiny_policy("gpt2")
    rollouts = ragged(policy)
    # Every sampled token was kept beside token 2: the score is log p - log(p + p_2).
    ids = rollouts.completion_ids[rollouts.mask]
    rollouts.support = Support(torch.stack([torch.full_like(ids, 2), ids], dim=1).flatten().int(), rollouts.mask.int() * 2)
    scored = policy.score(rollouts).logprobs
    rollouts.support = None
    own = policy.score(rollouts).logprobs
    rollouts.completion_ids = torch.where(rollouts.mask, 2, 0)
    # The states are of the sampled tokens, so only a first token's rival is the score of token 2 itself.
    rival = policy.score(rollouts).logprobs[:, 0]
    assert torch.allclose(scored[:, 0], own[:, 0] - torch.logaddexp(own[:, 0], rival), atol=1e-10)


def test_targets_of_whole_sequences_are_scored_as_plain_rows():
    policy = tiny_policy("gpt2")
    ids = torch.randint(3, policy.vocabulary, (3, 6))
    lengths = torch.tensor([6, 2, 4])
    target = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]).bool()
    logprobs = policy.score_sequences(TokenBatch(ids, lengths, target)).logprobs
    for row, length in enumerate(lengths.tolist()):
        logp = policy.model(input_ids=ids[row : row + 1, :length]).logits[0].log_softmax(-1)
        picked = logp[:-1].gather(1, ids[row, 1:length, None])[:, 0]
        expected = nn.functional.pad(picked, (1, 6 - length)) * target[row]
        assert distance(logprobs[row], expected) <= 1e-10


# --- dropout -----------------------------------------------------------------------------------------------------


def two_forwards(model_type: str, without_dropout: bool) -> tuple[Tensor, Tensor]:
    spec = tiny_spec(model_type, **MODELS[model_type][1] | {"dtype": "float32"})
    policy = Policy(spec, load_tokenizer(spec)).train()
    if without_dropout:
        policy.disable_dropout()
    rollouts = ragged(policy)
    return policy.score(rollouts).logprobs, policy.score(rollouts).logprobs


def test_gpt2_has_dropout_of_its_own():
    first, second = two_forwards("gpt2", without_dropout=False)
    assert not torch.equal(first, second)


def test_without_dropout_two_forwards_in_train_mode_are_equal():
    first, second = two_forwards("gpt2", without_dropout=True)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("model_type", "rates"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("bloom", {"attention_dropout": 0.5, "hidden_dropout": 0.5}),
        ("mixtral", {"attention_dropout": 0.5, "router_jitter_noise": 0.5}),
    ],
)
def test_noise_that_a_module_keeps_as_a_number_is_disabled_too(model_type, rates):
    options = MODELS[model_type][1]
    policy = tiny_policy(model_type, **options | {"config": {**options.get("config", {}), **rates}})
    rollouts = ragged(policy)
    assert torch.equal(policy.score(rollouts).logprobs, policy.score(rollouts).logprobs)


# --- adapters and the reference ----------------------------------------------------------------------------------


def adapted_policy() -> tuple[Policy, Policy]:
    """A policy with an adapter that has learned something, and its base."""
    policies = []
    for lora in (LoRASpec(r=4, alpha=8), None):
        torch.manual_seed(0)
        spec = tiny_spec("llama", lora=lora)
        policies.append(Policy(spec, load_tokenizer(spec)))
    adapted, base = policies
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    return adapted, base


def test_without_its_adapter_a_policy_is_its_base():
    adapted, base = adapted_policy()
    rollouts = ragged(base)
    with adapted.adapter_off():
        off = adapted.score(rollouts).logprobs
    assert torch.equal(off, base.score(rollouts).logprobs)
    assert distance(adapted.score(rollouts).logprobs, off) > 0.01


def test_an_adapter_alone_is_trained():
    adapted, _ = adapted_policy()
    assert all("lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad)


def test_an_adapter_has_the_gradient_of_plain_rows():
    adapted, _ = adapted_policy()
    adapted.double()
    rollouts = ragged(adapted)
    shared = gradients(adapted, adapted.score(rollouts).logprobs)
    assert_same_gradients(shared, gradients(adapted, row_by_row(adapted, rollouts)), 2e-6)


def test_the_reference_of_an_adapter_is_the_base_without_a_copy():
    adapted, base = adapted_policy()
    reference, rollouts = Reference(adapted), ragged(base)
    assert reference.copy is None
    assert torch.equal(reference.score(rollouts), base.score(rollouts).logprobs)


def test_the_reference_stays_where_training_began():
    policy = tiny_policy("gpt2")
    reference, rollouts = Reference(policy), ragged(policy)
    before = policy.score(rollouts).logprobs.float()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.5)
    assert torch.equal(reference.score(rollouts), before)
    assert distance(policy.score(rollouts).logprobs.float(), before) > 0.01


def test_the_reference_scores_without_gradient_in_float32():
    policy = tiny_policy("gpt2")
    scores = Reference(policy).score(ragged(policy))
    assert not scores.requires_grad
    assert scores.dtype == torch.float32


def test_the_copy_of_the_reference_is_no_submodule():
    owner = nn.Module()
    owner.policy = tiny_policy("gpt2")
    names = list(owner.state_dict())
    owner.reference = Reference(owner.policy)
    assert owner.reference.copy is not None
    assert list(owner.state_dict()) == names
    assert len(list(owner.parameters())) == len(list(owner.policy.parameters()))


def test_the_copy_of_the_reference_does_not_learn():
    copy = Reference(tiny_policy("gpt2")).copy
    assert not any(weight.requires_grad for weight in copy.parameters())


# --- the head ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": 1.5}),
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": None}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("phi", {}),  # a head with a bias
    ],
)
def test_logits_are_the_models_own(model_type, config):
    policy = tiny_policy(model_type, config=config, dtype="float32", attention="eager")
    rollouts = ragged(policy)
    assert distance(policy.score(rollouts).logprobs, row_by_row(policy, rollouts)) <= 1e-5


# --- end tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("named", "ends"), [(None, [2]), (2, [2]), (9, [2, 9]), ([9, 2, 7], [2, 7, 9])])
def test_every_end_token_of_model_and_tokenizer_counts(named, ends):
    policy = tiny_policy("gpt2")
    policy.causal_lm.generation_config.eos_token_id = named
    assert end_tokens(policy.causal_lm, load_tokenizer(policy.spec)) == ends
