"""An export is the policy: transformers or peft opens it from disk with equal logits, or it replaces nothing."""

import json

import pytest
import torch
from conftest import tiny_spec
from exported import move_weights
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.export import export_policy, mend_generation_config, whole_weights
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.reopened import probe_policy
from lit_rl.sampling.check import check_policy

LORA = LoRASpec(r=4, alpha=8)
IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


def trained(spec: PolicySpec, value_head: bool = False) -> Policy:
    """A policy whose trainable weights have moved, as a run leaves it."""
    policy = Policy(spec, load_tokenizer(spec))
    check_policy(policy)
    if value_head:
        policy.add_value_head()
    move_weights(policy)
    return policy


def export(policy: Policy, folder, change=None, **options) -> None:
    tokenizer, weights = load_tokenizer(policy.spec), whole_weights(policy)
    probe = probe_policy(policy, tokenizer)
    if change:
        change(weights)
    export_policy(policy, tokenizer, folder, weights, probe, **options)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "export"
    export(trained(tiny_spec()), folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "export"
    export(trained(PolicySpec(pretrained=whole, lora=LORA)), folder)
    return str(folder)


@pytest.mark.parametrize("value_head", [False, True])
@pytest.mark.parametrize(
    ("start", "lora", "is_adapter"),
    [
        ("scratch", None, False),
        ("scratch", LORA, False),
        ("whole", None, False),
        ("whole", LORA, True),
        ("adapter", None, False),
        ("adapter", LORA, False),
    ],
)
def test_an_export_is_the_policy(start, lora, is_adapter, value_head, whole, adapter, tmp_path):
    folders = {"whole": whole, "adapter": adapter}
    spec = PolicySpec(pretrained=folders[start], lora=lora) if start in folders else tiny_spec(lora=lora)
    policy = trained(spec, value_head)
    export(policy, tmp_path / "export")
    opener = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
    found = logits(opener.from_pretrained(tmp_path / "export"))
    torch.testing.assert_close(found, logits(policy.model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, logits(Policy(spec, load_tokenizer(spec)).model), atol=0.01)
    if value_head:
        weights = load_file(tmp_path / "export" / "value_head.safetensors")
        assert torch.equal(weights["weight"], policy.value_head.weight)


def doubled(weights):
    weights.model["lm_head.weight"] = 2 * weights.model["lm_head.weight"]


def with_another_value_head(weights):
    weights.value_head["bias"] = weights.value_head["bias"] + 1


@pytest.mark.parametrize(("change", "kind"), [(doubled, "log-probabilities"), (with_another_value_head, "values")])
def test_an_export_that_is_not_the_policy_replaces_nothing(change, kind, tmp_path):
    policy = trained(tiny_spec(), value_head=True)
    export(policy, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    with pytest.raises(ValueError, match=f"is not the policy: its {kind} differ"):
        export(policy, tmp_path / "export", change)
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_adapter_whose_base_has_changed_is_not_exported(tmp_path):
    export(trained(tiny_spec()), tmp_path / "base")
    policy = trained(PolicySpec(pretrained=str(tmp_path / "base"), lora=LORA))
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="is not the policy"):
        export(policy, tmp_path / "export")


def test_an_adapter_that_merges_into_two_tied_weights_is_not_exported(tmp_path):
    policy = trained(tiny_spec(lora=LoRASpec(r=4, target_modules=["lm_head"]), config={"tie_word_embeddings": True}))
    model = policy.causal_lm
    model.lm_head.get_base_layer().weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match=r"cannot be merged; leave them out of lora.target_modules"):
        export(policy, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_not_exported(tmp_path):
    policy = trained(tiny_spec())
    with torch.no_grad():
        policy.causal_lm.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        export(policy, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_opens_as_another_is_not_exported(tmp_path, monkeypatch):
    policy = trained(tiny_spec())
    tokenizer = load_tokenizer(policy.spec)
    probe = probe_policy(policy, tokenizer)
    tokenizer.add_tokens(["%%"])
    saved = load_tokenizer(policy.spec)
    monkeypatch.setattr(tokenizer, "save_pretrained", saved.save_pretrained)
    with pytest.raises(ValueError, match="another tokenizer"):
        export_policy(policy, tokenizer, tmp_path / "export", whole_weights(policy), probe)


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_export_keeps_the_policys_precision(lora, tmp_path):
    policy = trained(tiny_spec(lora=lora)).to(torch.bfloat16)
    export(policy, tmp_path / "export")
    assert {value.dtype for value in load_file(tmp_path / "export" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == "bfloat16"


def test_exporting_leaves_the_policy_as_it_is(whole, tmp_path):
    """Random numbers, modes, gradients, weights, configs: the next step of training depends on them all."""

    def state(policy):
        gradients = {f"{name} gradient": p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        weights = {name: weight.clone() for name, weight in policy.state_dict().items()}
        modes = [module.training for module in policy.modules()] + [weight.requires_grad for weight in policy.parameters()]
        config = policy.causal_lm.config
        plain = [modes, policy.capabilities, config._attn_implementation, config.to_dict()]
        return weights | gradients | {"random": torch.get_rng_state()}, plain

    for spec in (tiny_spec(lora=LORA), PolicySpec(pretrained=whole, lora=LORA), tiny_spec("gpt2")):
        policy = trained(spec)
        policy.model.get_input_embeddings().eval()
        policy.model(IDS).logits.sum().backward()
        before, plain_before = state(policy)
        export(policy, tmp_path / "export", trial=True)
        after, plain = state(policy)
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert plain == plain_before


def test_a_trial_leaves_nothing_behind(tmp_path):
    export(trained(tiny_spec()), tmp_path / "export", trial=True)
    assert list(tmp_path.iterdir()) == []


# --- a generation config that transformers opens and refuses to save ------------------------------------------------


def test_flags_of_sampling_get_do_sample(tmp_path, capsys):
    policy = trained(tiny_spec())
    policy.causal_lm.generation_config.temperature = 0.6
    export(policy, tmp_path / "export")
    saved = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.6, True)


def test_a_generation_config_that_cannot_be_mended_is_refused():
    config = trained(tiny_spec()).causal_lm.generation_config
    config.num_beams, config.early_stopping = 1, True
    with pytest.raises(ValueError, match=r"generation_config.json of the model cannot be saved again.*early_stopping"):
        mend_generation_config(config)
    assert config.do_sample is not True


def test_an_export_ends_its_text_at_every_token_that_ended_a_completion(tmp_path):
    policy = trained(tiny_spec(stop_tokens=["="]))
    export(policy, tmp_path / "export")
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "export").generation_config.eos_token_id
    assert ends == policy.end_tokens
    assert len(ends) == 2


def test_an_export_ends_its_text_at_the_stop_strings_too(tmp_path):
    export(trained(tiny_spec(stop_strings=["=1"])), tmp_path / "export")
    assert GenerationConfig.from_pretrained(tmp_path / "export").stop_strings == ["=1"]
