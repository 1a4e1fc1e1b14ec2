"""An adapter merged into its base is the trained model, or nothing is written."""

import pytest
import torch
from conftest import tiny_spec
from exported import move_weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_rl.models import LoRASpec, Policy, PolicySpec, adapters
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.merging import merge_export
from lit_rl.models.reopened import probe_policy

IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def export(spec: PolicySpec, folder, value_head: bool = False) -> Policy:
    """Policy whose weights have moved, and its export."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(spec)
    policy = Policy(spec, tokenizer)
    if value_head:
        policy.add_value_head()
    move_weights(policy)
    export_policy(policy, tokenizer, folder, whole_weights(policy), probe_policy(policy, tokenizer))
    return policy


def adapter_on(folder, quantization=None, config=None, value_head=False, **lora) -> Policy:
    """Policy with an adapter on ``folder / base``, exported to ``folder / adapter``."""
    export(tiny_spec(config=config), folder / "base")
    spec = PolicySpec(pretrained=str(folder / "base"), quantization=quantization, lora=LoRASpec(r=4, alpha=8, **lora))
    return export(spec, folder / "adapter", value_head)


@pytest.mark.parametrize("quantization", [None, "nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_a_merged_adapter_is_the_trained_model_up_to_rounding(quantization, tmp_path):
    policy = adapter_on(tmp_path, quantization, value_head=True)
    before = logits(policy.model)
    whole = merge_export(tmp_path / "adapter", tmp_path / "merged", torch.float32)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), before, rtol=1e-4, atol=1e-5)
    half = merge_export(tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    print(f"{quantization}: float32 {whole.difference:.2g}, bfloat16 {half.difference:.2g}, the adapter {half.change:.2g}")
    assert whole.difference < 1e-5
    assert half.difference < 0.05 < 0.4 < half.change
    head = load_file(tmp_path / "merged" / "value_head.safetensors")
    assert torch.equal(head["weight"], policy.value_head.weight)


def test_merging_differs_less_than_the_quantization_of_the_base(tmp_path):
    policy = adapter_on(tmp_path, "nf4")
    merged = merge_export(tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)
    # On the original base the adapter is another model.
    (tmp_path / "adapter" / adapters.QUANTIZATION_FILE).unlink()
    spec = PolicySpec(pretrained=str(tmp_path / "adapter"))
    other = Policy(spec, load_tokenizer(spec))
    gap = (logits(other.model).log_softmax(-1) - logits(policy.model).log_softmax(-1)).abs().mean()
    assert merged.difference < 0.5 * float(gap)


def test_a_merged_model_that_is_not_the_trained_one_replaces_nothing(tmp_path, monkeypatch):
    adapter_on(tmp_path, config={"tie_word_embeddings": True}, target_modules=["lm_head", "q_proj"])
    merge_export(tmp_path / "adapter", tmp_path / "merged", torch.float32)
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    monkeypatch.setattr(adapters, "_untie", lambda model: None)  # the adapter of the head is merged into the embeddings too
    with pytest.raises(
        ValueError, match=r"merged in bfloat16 is not the trained model: .* nats a token .*; nothing was replaced\."
    ):
        merge_export(tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    export(tiny_spec(), tmp_path / "base")
    with pytest.raises(ValueError, match=r"base is not the folder of an adapter: it has no adapter_config\.json"):
        merge_export(tmp_path / "base", tmp_path / "merged", torch.float32)
    assert not (tmp_path / "merged").exists()
