"""Adapters: what trains on top of them, weights that head and embeddings share, experts that are not linear layers."""

import copy
import logging

import pytest
import torch
from conftest import tiny_spec
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lit_rl.algorithms.critic import build_critic_model
from lit_rl.models import LoRASpec, Policy, PolicySpec, loading
from lit_rl.models.adapters import adapter_report
from lit_rl.models.loading import load_model, load_tokenizer

IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_dense_layers": 0,
    "layer_types": ["conv", "full_attention"],
}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


@torch.no_grad()
def randomize(model) -> None:
    """Adapters that have learned something."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.copy_(0.3 * torch.randn_like(weight))


def adapter_folder(folder, config: dict | None = None, **lora) -> tuple[str, torch.Tensor]:
    """Folder of an adapter on a folder of a model, as anybody saves it, and the logits of both together."""
    spec = tiny_spec(config=config)
    tokenizer = load_tokenizer(spec)
    for part in ("base", "adapter"):
        tokenizer.save_pretrained(folder / part)
    load_model(spec, tokenizer).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    options = {"r": 4, "target_modules": "all-linear", **lora}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    randomize(model)
    model.save_pretrained(folder / "adapter")
    return str(folder / "adapter"), logits(model)


# --- what is trained ---------------------------------------------------------------------------------------------


def test_a_policy_from_an_adapter_trains_all_weights_and_under_a_new_one_none_of_its_base(tmp_path):
    folder, _ = adapter_folder(tmp_path)
    whole = load_model(PolicySpec(pretrained=folder), load_tokenizer(PolicySpec(pretrained=folder)))
    assert all(weight.requires_grad for weight in whole.parameters())
    spec = PolicySpec(pretrained=folder, lora=LoRASpec(r=2))
    adapted = load_model(spec, load_tokenizer(spec))
    assert {"lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad} == {True}
    assert {"lora_" in name for name, weight in adapted.named_parameters() if not weight.requires_grad} == {False}


def test_an_adapter_that_transformers_opens_frozen_is_refused(tmp_path, monkeypatch):
    spec = PolicySpec(pretrained=adapter_folder(tmp_path)[0])
    monkeypatch.setattr(loading, "is_adapter", lambda source: False)  # as for a name on the hub
    with pytest.raises(ValueError, match=r"^model\.policy\.pretrained: .* is an adapter on the hub; download it and"):
        load_model(spec, load_tokenizer(spec))


def test_a_critic_from_an_adapter_trains_all_weights(tmp_path):
    spec = PolicySpec(pretrained=adapter_folder(tmp_path)[0])
    tokenizer = load_tokenizer(spec)
    critic = build_critic_model(spec, Policy(tiny_spec(), tokenizer), tokenizer.get_vocab(), seed=0)
    unread = critic.causal_lm.get_output_embeddings().weight
    assert all(weight.requires_grad for weight in critic.parameters() if weight is not unread)


# --- weights that head and embeddings share ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
    ],
    ids=["head", "embeddings", "both", "saved whole"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_head_or_embeddings_is_merged_into_an_equal_model(lora, tied, tmp_path):
    folder, expected = adapter_folder(tmp_path, {"tie_word_embeddings": tied}, **lora)
    spec = PolicySpec(pretrained=folder)
    model = load_model(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_new_adapter_on_shared_weights_merges_and_saves_exactly(targets, tmp_path):
    spec = tiny_spec(config={"tie_word_embeddings": True})
    load_model(spec, load_tokenizer(spec)).save_pretrained(tmp_path / "base")
    spec = PolicySpec(pretrained=str(tmp_path / "base"), tokenizer="arithmetic", lora=LoRASpec(r=4, target_modules=targets))
    model = load_model(spec, load_tokenizer(spec))
    randomize(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    # The adapter alone fits the base whose weights are shared.
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(alone), expected, rtol=1e-4, atol=1e-5)
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


# --- experts -----------------------------------------------------------------------------------------------------


def test_the_report_names_kinds_of_weights_with_and_without_an_adapter(caplog):
    spec = tiny_spec("lfm2_moe", config=EXPERTS, lora=LoRASpec(r=2))
    with caplog.at_level(logging.INFO):
        model = load_model(spec, load_tokenizer(spec))
    # Convolution 3 x 32 x 32 + 32 x 32 + 96, attention 4 x 32 x 32 + 32; in both layers experts of 4 x (64 + 32) x 32, a router
    # of 4 x 32, norms of 64; embeddings 53 x 32, which are the head too, and a last norm.
    total = 4192 + 4128 + 2 * (12288 + 128 + 64) + 1696 + 32
    shares = {"experts.gate_up_proj": 2 * 8192, "experts.down_proj": 2 * 4096, "model.embed_tokens": 1696}
    report = adapter_report(model)
    adapted, without = report.split("; without an adapter: ")
    assert adapted.startswith("LoRA: adapters on conv.in_proj, conv.out_proj, self_attn.q_proj, self_attn.k_proj,")
    assert f"({8192 / total:.0%} of the weights)" in adapted
    assert all(f"{kind} {size / total:.0%}" in without for kind, size in shares.items())
    assert "norm" not in report
    assert "\n" not in report
    assert report in caplog.text


def test_experts_get_adapters_by_the_names_of_their_weights(tmp_path):
    named = ["experts.gate_up_proj", "experts.down_proj"]
    spec = tiny_spec("lfm2_moe", config=EXPERTS, lora=LoRASpec(r=2, target_parameters=named))
    model = load_model(spec, load_tokenizer(spec))
    assert all(name in adapter_report(model).split("; without an adapter: ")[0] for name in named)
    before = logits(model)
    randomize(model)
    expected = logits(model)
    assert float((expected - before).abs().max()) > 0.01
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), before)
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, rtol=1e-4, atol=1e-5)


def test_a_name_that_no_weight_has_is_refused():
    spec = tiny_spec(lora=LoRASpec(r=2, target_parameters=["experts.down_proj"]))
    with pytest.raises(ValueError, match=r"^model\.policy\.lora\.target_parameters: .* ends with 'experts\.down_proj'\.$"):
        load_model(spec, load_tokenizer(spec))
