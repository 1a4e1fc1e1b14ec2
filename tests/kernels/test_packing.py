"""Packed rows: the same scores and the same gradient as padded ones, and no row feels another."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import tiny_spec
from tiny_rollouts import rollouts_of

from lit_rl.kernels.packing import Packed, _split_by_length
from lit_rl.models import LoRASpec, Policy
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.reopened import probe_policy
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.check import check_policy
from lit_rl.types import PromptBatch, Sample, TokenBatch

PROMPTS = [[5, 17, 9], [30, 4, 22, 8, 41, 12, 35], [7], [11, 3, 28, 19, 6]]
ROWS = [[8, 9, 2], [3], [4, 4, 4, 2], [2], [6, 5, 7, 8, 9, 10], [11, 12], [13, 2], [9, 9, 9, 9, 2]]
CONV = {"layer_types": ["conv", "full_attention"]}
PACKED = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 1},
    "qwen3_moe": {},
    "gemma3_text": {"sliding_window": 3},
    "mistral": {"sliding_window": 3},
}


def new_policy(model_type: str, dtype: str = "float64", config: dict | None = None, **options) -> Policy:
    config = {"initializer_range": 0.3, **PACKED.get(model_type, {}), **(config or {})}
    spec = tiny_spec(model_type, dtype, config, **options)
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    return policy


@cache
def policy_of(model_type: str) -> Policy:
    """One policy for all tests, which leave its weights as they are."""
    return new_policy(model_type)


@contextmanager
def packing(policy: Policy, packs: bool) -> Iterator[None]:
    """Packed rows, or padded ones."""
    found = policy.capabilities
    policy.capabilities = replace(found, packs=packs)
    yield
    policy.capabilities = found


def logprobs(policy: Policy, packs: bool, rows: Rollouts) -> torch.Tensor:
    with packing(policy, packs):
        return policy.score(rows).logprobs


def prompts() -> PromptBatch:
    return PromptBatch.pad(PROMPTS, [[] for _ in PROMPTS], [Sample("", "", "", n) for n in range(4)], 0)


def rollouts() -> Rollouts:
    return rollouts_of(prompts(), 2, ROWS)


def gradient(policy: Policy, packed: bool, rows: Rollouts) -> list[torch.Tensor]:
    with packing(policy, packed):
        scores = policy.score(rows, entropy_grad=True)
    weights = torch.linspace(-1, 2, scores.logprobs.numel(), dtype=torch.float64).view(scores.logprobs.shape)
    loss = (scores.logprobs * weights).sum() + 0.1 * scores.entropies.sum()
    return list(torch.autograd.grad(loss, [p for p in policy.parameters() if p.requires_grad]))


def largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Norm of the difference over norm, of the tensor where it is largest."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(first, second, strict=True))


# Of these only gpt2 computes all of a float64 model in float64: the others' norms and rotary angles are float32.
@pytest.mark.parametrize(("model_type", "exact"), [("gpt2", 1e-10)] + [(name, 2e-6) for name in PACKED if name != "gpt2"])
def test_the_gradient_is_that_of_padded_rows(model_type, exact):
    # A mixture has no float64 kernel for its experts.
    policy = new_policy("qwen3_moe", "float32") if model_type == "qwen3_moe" else policy_of(model_type)
    assert policy.capabilities.packs
    exact = 1e-4 if model_type == "qwen3_moe" else exact
    assert largest_difference(gradient(policy, True, rollouts()), gradient(policy, False, rollouts())) < exact


def test_merged_rows_are_packed_too():
    policy = policy_of("mistral")
    same = {"logprobs": torch.zeros(8, 6), "entropies": torch.zeros(8, 6)}
    rows = rollouts_of(prompts(), 2, [[8, 9, 2], [8, 9, 2], *ROWS[2:]], **same).merge_duplicates()
    assert len(rows) == 7
    assert largest_difference(gradient(policy, True, rows), gradient(policy, False, rows)) < 2e-6


def test_whole_sequences_are_scored_as_padded_ones():
    policy = policy_of("llama")
    batch = PromptBatch.pad(PROMPTS, list(ROWS[:4]), [Sample("", "", "", n) for n in range(4)], 0)
    for completion_only in (True, False):
        rows = TokenBatch.from_prompts(batch, 0, completion_only)
        with packing(policy, True):
            packed = policy.score_sequences(rows)
        with packing(policy, False):
            padded = policy.score_sequences(rows)
        assert torch.allclose(packed.logprobs, padded.logprobs, atol=1e-6), completion_only
        assert torch.equal(packed.hits, padded.hits), completion_only


def test_no_padding_is_computed():
    policy, widths = policy_of("llama"), []
    layer = policy.causal_lm.get_decoder().layers[0].mlp
    hook = layer.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[:-1].numel()))
    policy.score(rollouts())
    hook.remove()
    # Prompts once, and of each row all but the token that nothing follows.
    assert widths == [sum(map(len, PROMPTS)) + sum(len(row) - 1 for row in ROWS)]


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_row_does_not_feel_the_others(model_type):
    policy = policy_of(model_type)
    changed = rollouts_of(prompts(), 2, [ROWS[0], [40], *ROWS[2:4], [33, 5, 7, 8, 9, 10], *ROWS[5:]])
    first, second = logprobs(policy, True, rollouts()), logprobs(policy, True, changed)
    same = torch.tensor([0, 2, 3, 5, 6, 7])
    assert torch.equal(first[same], second[same])
    assert not torch.equal(first[4], second[4])


# Small weights hide from a comparison of results that a convolution mixes neighbours.
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("lfm2", {**CONV, "initializer_range": 0.3}),
        ("lfm2", {**CONV, "initializer_range": 0.02}),
        ("lfm2_moe", {**CONV, "num_dense_layers": 1, "initializer_range": 0.02}),
    ],
)
def test_a_model_that_mixes_neighbours_is_not_packed(model_type, config):
    assert not new_policy(model_type, "float32", config).capabilities.packs


@pytest.mark.parametrize("model_type", ["bloom", "llama"])
def test_another_attention_than_sdpa_is_not_packed(model_type):
    assert not new_policy(model_type, "float32", attention="eager").capabilities.packs


def test_checkpointed_layers_run_packed_rows_with_the_same_gradient():
    checkpointed = new_policy("llama", gradient_checkpointing=True)
    assert checkpointed.capabilities.packs
    assert largest_difference(gradient(checkpointed, True, rollouts()), gradient(policy_of("llama"), True, rollouts())) < 1e-12


def test_adapters_train_on_packed_rows():
    policy = new_policy("llama", lora=LoRASpec(r=4))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    assert policy.capabilities.packs
    assert largest_difference(gradient(policy, True, rollouts()), gradient(policy, False, rollouts())) < 2e-6


def test_rows_of_one_token_alone_are_packed():
    policy = policy_of("gpt2")
    rows = rollouts_of(prompts(), 2, [[n] for n in range(3, 11)])
    assert torch.allclose(logprobs(policy, True, rows), logprobs(policy, False, rows), atol=1e-12)


def test_dropout_of_attention_reaches_packed_rows():
    spec = tiny_spec("llama", config={"attention_dropout": 0.5, "initializer_range": 0.3})
    policy = Policy(spec, load_tokenizer(spec))
    check_policy(policy)
    assert policy.capabilities.packs
    assert not torch.equal(policy.score(rollouts()).logprobs, policy.score(rollouts()).logprobs)


def test_an_export_names_no_attention_of_ours(tmp_path):
    policy = policy_of("llama")
    tokenizer = load_tokenizer(policy.spec)
    export_policy(policy, tokenizer, tmp_path / "export", whole_weights(policy), probe_policy(policy, tokenizer))
    assert "lit_rl" not in json.dumps(json.loads((tmp_path / "export" / "config.json").read_text()))


def test_the_layout_of_two_prompts_and_three_rows():
    # Prompts 5 6 and 7; rows 8 9 and none on the first, 10 on the second: one sequence of 5 6 7 8 9 10.
    packed = Packed(
        torch.tensor([[5, 6], [0, 7]]),
        torch.tensor([[True, True], [False, True]]),
        torch.tensor([[8, 9], [0, 0], [10, 0]]),
        torch.tensor([2, 0, 1]),
        torch.tensor([0, 0, 1]),
    )
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert packed.positions.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert packed.last_of_prompts.tolist() == [1, 2]
    assert packed.prompt_places.tolist() == [[0, 1], [2, 0]]
    assert packed.row_places.tolist() == [[3, 4], [0, 0], [5, 0]]
    # Rows of unequal length are apart, the shorter one first; a row without tokens is in no layout.
    prompts, short, long = packed.layouts
    assert [layout.places.tolist() for layout in (prompts, short, long)] == [[[0, 1], [2, 0]], [[5]], [[3, 4]]]
    # The first row: its prompt's two tokens and, causally, its own.
    assert long.mask(0)[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]
    # The third: its prompt's only token, not the padding after it.
    assert short.mask(0)[0, 0].tolist() == [[True, False, True]]
    # A window of two: 9 at place 3 sees places 2 and 3.
    assert long.mask(2)[0, 0, 1].tolist() == [False, False, True, True]
    # Slots of the three layouts, one after another: prompts 0 to 3, the short row 4, the long one 5 and 6.
    assert packed.slots.tolist() == [0, 1, 2, 5, 6, 4]


@pytest.mark.parametrize(
    ("lengths", "before", "parts"),
    [
        ([4, 4, 4], 0, [[0, 1, 2]]),
        ([4, 0, 4], 0, [[0, 2]]),
        # Apart 1 + 1 + 16 pairs in place of 48.
        ([1, 4, 1], 0, [[0, 2], [1]]),
        # After a prompt of 96: 2 x 1 x 97 + 4 x 100 = 594 in place of 1,200, but 2 x 3 x 99 + 4 x 100 = 994.
        ([1, 4, 1], 96, [[0, 2], [1]]),
        ([3, 4, 3], 96, [[0, 1, 2]]),
        # 2 x 25 + 100 = 150 is less than 1 + 2 x 100 = 201.
        ([10, 1, 5], 0, [[1, 2], [0]]),
    ],
)
def test_short_and_long_sequences_are_apart_if_that_saves_a_fifth(lengths, before, parts):
    found = _split_by_length(torch.tensor(lengths), before)
    assert [sorted(part.tolist()) for part in found] == [sorted(part) for part in parts]


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_rows_that_are_laid_out_apart_are_scored_as_padded_ones(model_type):
    policy, rows = policy_of(model_type), rollouts_of(prompts(), 2, [*ROWS[:-1], [5, 6, 7] * 8])
    assert len(_split_by_length(rows.lengths - 1, before=7)) == 2
    assert torch.allclose(logprobs(policy, True, rows), logprobs(policy, False, rows), atol=1e-9)
