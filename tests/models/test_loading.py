"""Loading: embeddings that learn, tokenizers as their files say, configs and files that cannot be opened."""

import pytest
import torch
from conftest import tiny_spec
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.tasks.tokenizers import arithmetic_tokenizer
from lit_rl.types import TokenBatch


def padded_by_its_end(folder) -> str:
    """Folder of a tokenizer without a padding token."""
    tokenizer = arithmetic_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def embedding_gradient(policy: Policy, token: int) -> torch.Tensor:
    """Gradient of a token's embedding, from a sequence that holds it before a target."""
    ids = torch.tensor([[5, token, 7]])
    batch = TokenBatch(ids, torch.tensor([3]), torch.tensor([[False, False, True]]))
    weight = policy.causal_lm.get_input_embeddings().weight
    policy.zero_grad()
    policy.score_sequences(batch).logprobs.sum().backward()
    return weight.grad[token]


# --- padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["scratch", "padded", "plain"])
@pytest.mark.parametrize("lora", [None, LoRASpec(r=2, target_modules=["embed_tokens"])])
def test_an_end_token_that_also_pads_has_an_embedding_that_learns(start, lora, tmp_path):
    tokenizer = padded_by_its_end(tmp_path / "tokenizer")
    spec = PolicySpec(config=tiny_spec().config, tokenizer=tokenizer, lora=lora)
    if start != "scratch":
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=53, **tiny_spec().config))
        model.config.pad_token_id = 2 if start == "padded" else None
        model.save_pretrained(tmp_path / "model")
        spec = PolicySpec(pretrained=str(tmp_path / "model"), tokenizer=tokenizer, lora=lora)
    policy = Policy(spec, load_tokenizer(spec))
    embeddings = policy.causal_lm.get_input_embeddings()
    assert embeddings.weight[2].abs().max() > 0
    if lora is None:
        assert embedding_gradient(policy, 2).abs().max() > 0
    else:
        nn.init.normal_(embeddings.lora_embedding_B["default"])
        embedding_gradient_of_adapter = torch.autograd.grad(
            embeddings(torch.tensor([2])).sum(), embeddings.lora_embedding_A["default"]
        )[0]
        assert embedding_gradient_of_adapter[:, 2].abs().max() > 0


def test_only_a_model_that_names_its_padding_is_saved_with_it(tmp_path):
    tokenizer = padded_by_its_end(tmp_path / "tokenizer")
    config = tiny_spec().config
    for given, options, expected in [
        (tokenizer, {}, None),
        (tokenizer, {"pad_token_id": 3}, 3),
        ("arithmetic", {}, 0),  # a token that only pads
    ]:
        spec = PolicySpec(config={**config, **options}, tokenizer=given)
        model = load_model(spec, load_tokenizer(spec))
        model.save_pretrained(tmp_path / "model")
        again = load_model(PolicySpec(pretrained=str(tmp_path / "model"), tokenizer=given), load_tokenizer(spec))
        assert again.config.pad_token_id == model.config.pad_token_id == expected
        assert AutoConfig.from_pretrained(tmp_path / "model").pad_token_id == expected


# --- tokenizers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_the_tokenizer_that_was_saved_is_the_one_that_opens(model_type, tmp_path):
    spec = tiny_spec(model_type)
    tokenizer = load_tokenizer(spec)
    load_model(spec, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(PolicySpec(pretrained=str(tmp_path)))
    text = "12+3 = 15<scratchpad>  (7, a)"
    ids = tokenizer(text)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(text)["input_ids"] == ids
    assert again.decode(ids) == text
    assert (again.padding_side, again.pad_token_id, again.eos_token_id) == ("left", 0, 2)


def test_a_class_that_a_model_type_does_not_use_opens_too(tmp_path):
    from transformers import LlamaTokenizer

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6}
    tokenizer = LlamaTokenizer(vocab=words, merges=[("▁", "a")])
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(PolicySpec(pretrained=str(tmp_path)))
    ids = tokenizer("ab a b")["input_ids"]
    assert again("ab a b")["input_ids"] == ids
    assert again.decode(ids) == tokenizer.decode(ids)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab a b")["input_ids"] != ids, "transformers alone would open another one"


# --- configs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
def test_heads_of_a_size_divide_for_model_types_that_group_keys(size):
    for model_type, options in {
        "mixtral": {"num_local_experts": 2},
        "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
        "lfm2": {},
        "qwen2": {},
        "llama": {},
    }.items():
        # One layer, and no weights: sizes are what is asked.
        spec = PolicySpec(config={"model_type": model_type, "num_hidden_layers": 1, **options}, size=size, tokenizer="rpn13")
        with torch.device("meta"):
            config = load_model(spec, load_tokenizer(spec)).config
        assert config.num_attention_heads % config.num_key_value_heads == 0, model_type


def test_the_heads_of_a_config_stay():
    spec = PolicySpec(config={"model_type": "mixtral", "num_key_value_heads": 1}, size="tiny", tokenizer="rpn13")
    with torch.device("meta"):
        assert load_model(spec, load_tokenizer(spec)).config.num_key_value_heads == 1


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": "wide"},
        {"hidden_size": None},
        {"hidden_size": [32]},
        {"num_attention_heads": 0},
        {"vocab_size": "53"},
        {"rope_parameters": "default"},
    ],
)
def test_options_of_a_wrong_type_are_refused_in_one_line(options):
    spec = tiny_spec(config=options)
    with pytest.raises(ValueError, match=r"^model\.policy\.config: cannot build a 'llama': .*(Field|modulo)") as refused:
        load_model(spec, load_tokenizer(spec))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model_type", [None, ["llama"], 7, {"llama": None}])
def test_a_model_type_that_is_not_a_name_is_refused(model_type):
    with pytest.raises(ValueError, match=r"^model\.policy\.config: `model_type` is missing"):
        PolicySpec(config={"model_type": model_type}, tokenizer="arithmetic")


def test_an_unknown_model_type_is_refused_with_one_that_is_meant():
    spec = PolicySpec(config={"model_type": "llmaa"}, tokenizer="arithmetic")
    with pytest.raises(ValueError, match=r"^model\.policy\.config: `model_type` 'llmaa' is unknown; write .*llama") as refused:
        load_model(spec, load_tokenizer(spec))
    assert len(str(refused.value)) < 200


def test_a_broken_file_is_refused_in_one_line(tmp_path):
    spec = tiny_spec()
    tokenizer = load_tokenizer(spec)
    load_model(spec, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    broken = PolicySpec(pretrained=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"^model\.policy\.pretrained: cannot open '.+': .+") as refused:
        load_model(broken, tokenizer)
    assert "\n" not in str(refused.value)
    (tmp_path / "tokenizer.json").write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^model\.policy\.pretrained: no tokenizer at ") as refused:
        load_tokenizer(broken)
    assert "\n" not in str(refused.value)
