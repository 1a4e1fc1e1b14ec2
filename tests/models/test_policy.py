"""Scores of shared prompts against plain forwards of single rows; dropout, adapters, the reference and the head."""

import copy

import pytest
import torch
from conftest import tiny_spec
from torch import Tensor, nn
from transformers import AutoConfig

from lit_rl.models import LoRASpec, Policy
from lit_rl.models.loading import end_tokens, load_tokenizer, position_limit
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
    return Rollouts(batch, completion_ids=ids, lengths=lengths, **settings)


@pytest.fixture(scope="module", params=MODELS)
def any_policy(request) -> Policy:
    """A policy of each model type; not to be changed."""
    return tiny_policy(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Policy:
    """A policy; not to be changed."""
    return tiny_policy("gpt2")


def tolerance(policy: Policy) -> float:
    return MODELS[policy.causal_lm.config.model_type][0]


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


def test_scores_and_gradients_of_shared_prompts_are_those_of_plain_rows(any_policy):
    policy, rollouts = any_policy, ragged(any_policy)
    shared, plain = policy.score(rollouts).logprobs, row_by_row(policy, rollouts)
    assert policy.capabilities.shares_prompts
    assert distance(shared, plain) <= tolerance(policy)
    assert_same_gradients(gradients(policy, shared), gradients(policy, plain), tolerance(policy))


def test_gradient_checkpointing_scores_the_same(any_policy):
    policy, rollouts = any_policy, ragged(any_policy)
    checkpointing = tiny_policy(policy.causal_lm.config.model_type, gradient_checkpointing=True)
    assert not checkpointing.capabilities.shares_prompts
    shared, whole = policy.score(rollouts).logprobs, checkpointing.score(rollouts).logprobs
    assert distance(whole, shared) <= tolerance(policy)
    assert_same_gradients(gradients(checkpointing, whole), gradients(policy, shared), tolerance(policy))


@pytest.mark.parametrize("model_type", MODELS)
def test_left_padding_makes_no_nan_in_float32(model_type):
    for checkpointing in (False, True):
        policy = tiny_policy(model_type, dtype="float32", gradient_checkpointing=checkpointing)
        logprobs = policy.score(ragged(policy)).logprobs
        assert logprobs.isfinite().all(), checkpointing
        assert all(gradient.isfinite().all() for gradient in gradients(policy, logprobs).values()), checkpointing


def test_rows_are_scored_at_their_own_temperature(gpt2):
    rollouts = ragged(gpt2, temperature=torch.linspace(0.5, 2, 8))
    assert distance(gpt2.score(rollouts).logprobs, row_by_row(gpt2, rollouts)) <= 1e-10


def test_rows_left_by_merging_are_scored_on_their_own_prompts(gpt2):
    rollouts = ragged(gpt2)
    for field in (rollouts.completion_ids, rollouts.lengths, rollouts.sampled):
        field[1] = field[0]
    merged = rollouts.merge_duplicates()
    assert len(merged) == 7
    assert distance(gpt2.score(merged).logprobs, row_by_row(gpt2, merged)) <= 1e-10


def test_rows_are_scored_on_the_prompts_that_they_name(gpt2):
    for owners in ([3, 2, 0, 1, 1, 0, 2, 3], [0, 0, 0, 1, 1, 2, 3, 3]):
        rollouts = ragged(gpt2, prompt=torch.tensor(owners))
        assert distance(gpt2.score(rollouts).logprobs, row_by_row(gpt2, rollouts)) <= 1e-10, owners


def test_completions_of_one_token_are_scored_from_the_prompt_alone(gpt2):
    rollouts = ragged(gpt2)
    rollouts.lengths = torch.ones_like(rollouts.lengths)
    rollouts.completion_ids, rollouts.sampled = rollouts.completion_ids[:, :1], rollouts.sampled[:, :1]
    assert distance(gpt2.score(rollouts).logprobs, row_by_row(gpt2, rollouts)) <= 1e-10


def test_scores_after_the_end_of_a_row_are_exactly_zero(gpt2):
    rollouts = ragged(gpt2)
    scores = gpt2.score(rollouts, entropy_grad=True)
    after = ~rollouts.mask
    assert scores.logprobs[after].abs().max() == 0
    assert scores.entropies[after].abs().max() == 0
    assert not scores.hits[after].any()


def test_tokens_after_the_end_of_a_row_change_nothing(gpt2):
    rollouts = ragged(gpt2)
    before = gpt2.score(rollouts).logprobs
    rollouts.completion_ids = rollouts.completion_ids.masked_fill(~rollouts.mask, 7)
    assert torch.equal(gpt2.score(rollouts).logprobs, before)


def test_rows_are_scored_on_the_support_that_they_were_drawn_from(gpt2):
    rollouts = ragged(gpt2)
    # Every sampled token was kept beside token 2: the score is log p - log(p + p_2).
    ids = rollouts.completion_ids[rollouts.mask]
    rollouts.support = Support(torch.stack([torch.full_like(ids, 2), ids], dim=1).flatten().int(), rollouts.mask.int() * 2)
    scored = gpt2.score(rollouts).logprobs
    rollouts.support = None
    own = gpt2.score(rollouts).logprobs
    rollouts.completion_ids = torch.where(rollouts.mask, 2, 0)
    # The states are of the sampled tokens, so only a first token's rival is the score of token 2 itself.
    rival = gpt2.score(rollouts).logprobs[:, 0]
    assert torch.allclose(scored[:, 0], own[:, 0] - torch.logaddexp(own[:, 0], rival), atol=1e-10)


def test_targets_of_whole_sequences_are_scored_as_plain_rows(gpt2):
    ids = torch.randint(3, gpt2.vocabulary, (3, 6))
    lengths = torch.tensor([6, 2, 4])
    target = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]).bool()
    logprobs = gpt2.score_sequences(TokenBatch(ids, lengths, target)).logprobs
    for row, length in enumerate(lengths.tolist()):
        logp = gpt2.model(input_ids=ids[row : row + 1, :length]).logits[0].log_softmax(-1)
        picked = logp[:-1].gather(1, ids[row, 1:length, None])[:, 0]
        expected = nn.functional.pad(picked, (1, 6 - length)) * target[row]
        assert distance(logprobs[row], expected) <= 1e-10


# --- dropout -----------------------------------------------------------------------------------------------------


def test_without_dropout_two_forwards_in_train_mode_are_equal():
    spec = tiny_spec("gpt2")
    policy = Policy(spec, load_tokenizer(spec)).train()
    rollouts = ragged(policy)
    assert not torch.equal(policy.score(rollouts).logprobs, policy.score(rollouts).logprobs)
    policy.disable_dropout()
    assert torch.equal(policy.score(rollouts).logprobs, policy.score(rollouts).logprobs)


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


@pytest.fixture(scope="module")
def adapted_and_base() -> tuple[Policy, Policy]:
    """A policy with an adapter that has learned something, and its base; not to be changed."""
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


def test_without_its_adapter_a_policy_is_its_base(adapted_and_base):
    adapted, base = adapted_and_base
    rollouts = ragged(base)
    with adapted.adapter_off():
        off = adapted.score(rollouts).logprobs
    assert torch.equal(off, base.score(rollouts).logprobs)
    assert distance(adapted.score(rollouts).logprobs, off) > 0.01


def test_an_adapter_alone_is_trained(adapted_and_base):
    adapted, _ = adapted_and_base
    assert all("lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad)


def test_an_adapter_has_the_gradient_of_plain_rows(adapted_and_base):
    adapted = copy.deepcopy(adapted_and_base[0]).double()
    rollouts = ragged(adapted)
    shared = gradients(adapted, adapted.score(rollouts).logprobs)
    assert_same_gradients(shared, gradients(adapted, row_by_row(adapted, rollouts)), 2e-6)


def test_the_reference_of_an_adapter_is_the_base_without_a_copy(adapted_and_base):
    adapted, base = copy.deepcopy(adapted_and_base[0]), adapted_and_base[1]
    learned = {name: weight.clone() for name, weight in adapted.named_parameters() if "lora_B" in name}
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name in learned:
                weight.zero_()  # as a new adapter begins
        reference, rollouts = Reference(adapted), ragged(base)
        for name, weight in adapted.named_parameters():
            if name in learned:
                weight.copy_(learned[name])
    assert reference.copy is None
    assert torch.equal(reference.score(rollouts), base.score(rollouts).logprobs)


def test_the_reference_stays_where_training_began(gpt2):
    policy = copy.deepcopy(gpt2)
    reference, rollouts = Reference(policy), ragged(policy)
    before = policy.score(rollouts).logprobs.float()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.5)
    assert torch.equal(reference.score(rollouts), before)
    assert distance(policy.score(rollouts).logprobs.float(), before) > 0.01


def test_the_reference_scores_without_gradient_in_float32(gpt2):
    scores = Reference(gpt2).score(ragged(gpt2))
    assert not scores.requires_grad
    assert scores.dtype == torch.float32


def test_the_copy_of_the_reference_is_not_a_submodule(gpt2):
    owner = nn.Module()
    owner.policy = gpt2
    names = list(owner.state_dict())
    owner.reference = Reference(owner.policy)
    assert owner.reference.copy is not None
    assert list(owner.state_dict()) == names
    assert len(list(owner.parameters())) == len(list(owner.policy.parameters()))


def test_the_copy_of_the_reference_does_not_learn(gpt2):
    assert not any(weight.requires_grad for weight in Reference(gpt2).copy.parameters())


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


def test_every_end_token_of_model_and_tokenizer_counts(gpt2):
    model = copy.deepcopy(gpt2.causal_lm)
    for named, ends in [(None, [2]), (2, [2]), (9, [2, 9]), ([9, 2, 7], [2, 7, 9])]:
        model.generation_config.eos_token_id = named
        assert end_tokens(model, load_tokenizer(gpt2.spec)) == ends, named


# --- positions ---------------------------------------------------------------------------------------------------


def test_the_position_limit_is_the_configs_unless_positions_have_none():
    assert position_limit(AutoConfig.for_model("llama", max_position_embeddings=77)) == 77
    assert position_limit(AutoConfig.for_model("gpt2", max_position_embeddings=77)) == 77
    assert position_limit(AutoConfig.for_model("bloom", max_position_embeddings=77)) is None
    assert position_limit(AutoConfig.for_model("mamba")) is None
