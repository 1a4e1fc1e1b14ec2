"""Quantized bases: the weights of bitsandbytes, small, exact in both directions, exported as the policy that was trained."""

import copy

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn import Linear4bit
from conftest import tiny_spec
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.adapters import base_quantization
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.models.miniature import miniature
from lit_rl.models.quantization import NF4Linear, QuantizedLinear, is_quantized, plain_layer, quantize
from lit_rl.models.reopened import probe_policy
from lit_rl.sampling.check import check_policy

METHODS = ["nf4", "int8"]
LORA = LoRASpec(r=4, alpha=8)
IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def trained(spec: PolicySpec) -> Policy:
    """A policy whose adapter has learned something."""
    policy = Policy(spec, load_tokenizer(spec))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    return policy


def export(policy: Policy, folder):
    tokenizer = load_tokenizer(policy.spec)
    export_policy(policy, tokenizer, folder, whole_weights(policy), probe_policy(policy, tokenizer))
    return str(folder)


def layer(method: str, bias: bool = True) -> QuantizedLinear:
    """A quantized layer of 128 x 64."""
    model = nn.Sequential(nn.Linear(64, 128, bias=bias))
    model.get_output_embeddings = lambda: None
    quantize(model, method)
    return model[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a plain model."""
    torch.manual_seed(0)
    return export(Policy(tiny_spec(), load_tokenizer(tiny_spec())), tmp_path_factory.mktemp("base") / "export")


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Policies with an adapter on the quantized folder, and their exports."""
    torch.manual_seed(0)
    made = {}
    for method in METHODS:
        policy = trained(PolicySpec(pretrained=base, quantization=method, lora=LORA))
        made[method] = policy, export(policy, tmp_path_factory.mktemp(method) / "export")
    return made


# --- layers ------------------------------------------------------------------------------------------------------


def test_nf4_is_the_layer_of_transformers_and_bitsandbytes(base):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    theirs = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map={"": "cpu"})
    for module in theirs.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    own = load_model(PolicySpec(pretrained=base, quantization="nf4"), load_tokenizer(tiny_spec()))
    torch.testing.assert_close(logits(own), logits(theirs), rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert float((logits(own) - logits(plain)).abs().max()) > 1e-3


def test_int8_has_a_scale_for_each_row():
    found = layer("int8")
    # 127 steps up to the largest weight of a row.
    torch.testing.assert_close(found.dense(torch.float32), found.weight * found.scale[:, None] / 127)
    assert found.weight.abs().amax(1).tolist() == [127] * 128
    torch.testing.assert_close(found.weight.data, int8_vectorwise_quant(found.dense(torch.float16))[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_model_quantized_in_place_is_the_one_that_is_quantized_while_it_is_read(method, base):
    tokenizer = load_tokenizer(tiny_spec())
    read = load_model(PolicySpec(pretrained=base, quantization=method), tokenizer)
    in_place = load_model(PolicySpec(pretrained=base), tokenizer)
    quantize(in_place, method)
    torch.testing.assert_close(in_place.state_dict(), read.state_dict(), rtol=0, atol=0)
    assert not hasattr(read.config, "quantization_config")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_dequantized_layer(method, dtype):
    own = layer(method)
    plain = plain_layer(own, dtype)
    inputs = [torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_() for _ in range(2)]
    for each, x in zip((own, plain), inputs, strict=True):
        each(x).float().square().sum().backward()
    torch.testing.assert_close(own(inputs[0]).float(), plain(inputs[1]).float(), rtol=1e-2, atol=1e-2)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((inputs[0].grad - inputs[1].grad).norm() / inputs[1].grad.norm()) < bound


@pytest.mark.parametrize("method", METHODS)
def test_products_have_the_precision_of_the_run_and_casts_leave_weights_and_scales(method):
    own = layer(method)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    assert own(torch.randn(2, 64)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(torch.randn(2, 64)).dtype == torch.bfloat16
    own.to(torch.bfloat16)
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


def test_nf4_takes_a_third_of_bfloat16_at_most_and_int8_half():
    for method, share in (("nf4", 0.35), ("int8", 0.55)):
        own = layer(method, bias=False)
        size = sum(tensor.numel() * tensor.element_size() for tensor in own.state_dict().values())
        assert size / (2 * 64 * 128) <= share


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_there_after_a_pass_in_eval_mode(method, base):
    spec = PolicySpec(pretrained=base, quantization=method, lora=LORA)
    policy = trained(spec)

    def gradients():
        policy.zero_grad()
        policy.train()
        policy.model(IDS).logits.logsumexp(-1).sum().backward()
        return {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.requires_grad}

    before = gradients()
    assert all(float(gradient.norm()) > 0 for gradient in before.values())
    policy.eval()
    with torch.no_grad():
        policy.model(IDS)
    torch.testing.assert_close(gradients(), before, rtol=0, atol=0)


# --- the check at the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_check_passes_with_all_shortcuts_and_its_miniature_is_quantized(method, base):
    policy = Policy(PolicySpec(pretrained=base, quantization=method, lora=LORA), load_tokenizer(tiny_spec()))
    check_policy(policy)
    assert policy.capabilities.packs
    assert policy.capabilities.shares_keys
    assert is_quantized(miniature(policy, "sdpa").model)


def test_the_check_refuses_a_learner_with_other_weights_than_the_sampler(base, monkeypatch):
    policy = Policy(PolicySpec(pretrained=base, quantization="nf4", lora=LORA), load_tokenizer(tiny_spec()))
    product = NF4Linear.product
    monkeypatch.setattr(NF4Linear, "product", lambda self, x: product(self, x) * (1.1 if self.training else 1.0))
    with pytest.raises(ValueError, match="cannot be a policy as configured"):
        check_policy(policy)


def test_layers_that_are_transposed_are_quantized_too():
    plain = Policy(tiny_spec("gpt2"), load_tokenizer(tiny_spec()))
    quantized = copy.deepcopy(plain)
    quantize(quantized.model, "int8")
    assert sum(isinstance(each, QuantizedLinear) for each in quantized.modules()) == 2 * 4
    torch.testing.assert_close(logits(quantized.model), logits(plain.model), rtol=0, atol=0.01)


# --- exports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_exported_alone_and_opens_on_its_quantized_base_with_equal_logits(method, base, adapters):
    policy, folder = adapters[method]
    assert base_quantization(folder) == method
    quantized = load_model(PolicySpec(pretrained=base, quantization=method), load_tokenizer(tiny_spec()))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(quantized, folder)), logits(policy.model))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert not torch.allclose(logits(plain), logits(policy.model), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_opens_merged_into_its_dequantized_base(method, adapters):
    policy, folder = adapters[method]
    spec = PolicySpec(pretrained=folder)
    merged = load_model(spec, load_tokenizer(spec))
    assert all(weight.requires_grad for weight in merged.parameters())
    torch.testing.assert_close(logits(merged), logits(policy.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["evaluated", "learning on"])
def test_an_adapter_stays_apart_from_a_base_of_its_own_quantization(lora, adapters, tmp_path):
    policy, folder = adapters["nf4"]
    spec = PolicySpec(pretrained=folder, quantization="nf4", lora=lora)
    again = Policy(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(again.model), logits(policy.model), rtol=0, atol=0)
    learning = {name for name, weight in again.named_parameters() if weight.requires_grad}
    assert learning == ({name for name, _ in again.named_parameters() if "lora_" in name} if lora else set())
    if lora is None:
        return
    # It names the base itself, and not the adapter that it began with.
    export(again, tmp_path / "export")
    third = Policy(PolicySpec(pretrained=str(tmp_path / "export"), quantization="nf4"), load_tokenizer(spec))
    torch.testing.assert_close(logits(third.model), logits(policy.model), rtol=0, atol=0)


def test_an_adapter_that_learns_on_has_its_own_rank(adapters):
    spec = PolicySpec(pretrained=adapters["nf4"][1], quantization="nf4", lora=LoRASpec(r=8))
    with pytest.raises(ValueError, match=r"^model\.policy\.lora has r 8 and alpha 32, but the adapter .* r 4 and alpha 8"):
        load_model(spec, load_tokenizer(spec))


def test_an_adapter_opens_on_weights_that_were_rounded_as_in_its_training(base, tmp_path):
    policy = trained(PolicySpec(pretrained=base, quantization="nf4", lora=LORA, dtype="bfloat16"))
    folder = export(policy, tmp_path / "export")
    spec = PolicySpec(pretrained=folder, quantization="nf4")
    again = Policy(spec, load_tokenizer(spec))
    packed = {name: value for name, value in policy.state_dict().items() if value.dtype == torch.uint8}
    torch.testing.assert_close({name: again.state_dict()[name] for name in packed}, packed, rtol=0, atol=0)
    assert packed
    embeddings = [each.causal_lm.get_input_embeddings().weight for each in (again, policy)]
    assert torch.equal(embeddings[0], embeddings[1].float())


def test_an_adapter_that_names_an_unknown_quantization_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "quantization.json").write_text('{"base": "fp4"}')
    with pytest.raises(ValueError, match=r"quantization\.json: `base` is 'fp4'; write one of nf4, int8\.$"):
        base_quantization(str(tmp_path))


def test_another_quantization_than_the_adapters_is_of_the_merged_model(adapters):
    policy, folder = adapters["nf4"]
    spec = PolicySpec(pretrained=folder, quantization="int8")
    again = load_model(spec, load_tokenizer(spec))
    assert is_quantized(again)
    torch.testing.assert_close(logits(again), logits(policy.model), rtol=0, atol=0.05)


@pytest.mark.parametrize("start", ["scratch", "adapter"])
def test_a_base_without_a_name_is_exported_merged_and_dequantized(start, adapters, tmp_path):
    spec = (
        tiny_spec(quantization="nf4", lora=LORA)
        if start == "scratch"
        else PolicySpec(pretrained=adapters["int8"][1], quantization="nf4", lora=LORA)
    )
    policy = trained(spec)
    opened = AutoModelForCausalLM.from_pretrained(export(policy, tmp_path / "export"))
    torch.testing.assert_close(logits(opened), logits(policy.model), rtol=1e-4, atol=1e-5)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_quantized_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"^model\.policy\.quantization is 'fp4'; write one of nf4, int8\.$"):
        tiny_spec(quantization="fp4")
    with pytest.raises(ValueError, match=r"^model\.policy\.quantization computes in float32 at most"):
        tiny_spec(quantization="nf4", dtype="float64")
    with pytest.raises(ValueError, match=r"^model\.policy\.quantization and compile do not go together"):
        tiny_spec(quantization="nf4", compile=True)
    config = BitsAndBytesConfig(load_in_4bit=True)
    ready = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map={"": "cpu"})
    ready.save_pretrained(tmp_path)
    for method in (None, "nf4"):
        spec = PolicySpec(pretrained=str(tmp_path), tokenizer="arithmetic", quantization=method)
        with pytest.raises(
            ValueError, match=r"^model\.policy\.pretrained: .*: its weights are quantized already; name the model"
        ):
            load_model(spec, load_tokenizer(spec))
