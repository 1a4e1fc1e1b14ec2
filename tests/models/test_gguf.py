"""GGUF files: model and tokenizer come out as they went in, as a plain model that trains and is saved."""

import gguf
import pytest
import torch
from conftest import tiny_spec
from transformers import AutoModelForCausalLM

from lit_rl.models import PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.tasks.tokenizers import byte_tokenizer

IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])
HEADS = 2


def written(folder):
    """A tiny llama with the tokenizer of bytes in the layout of llama.cpp; returns the model."""
    tokenizer = byte_tokenizer()
    spec = PolicySpec(config={**tiny_spec().config, "vocab_size": 260}, tokenizer="bytes")
    model = load_model(spec, tokenizer)
    writer, config = gguf.GGUFWriter(folder / "tiny.gguf", "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "ab"]
    tokens[2] = "<|endoftext|>"  # which transformers would add
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, transformers the two halves of a head
            weight = weight.view(HEADS, 2, -1, config.hidden_size).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_file_opens_as_the_model_that_it_was_made_of(tmp_path):
    model = written(tmp_path)
    spec = PolicySpec(pretrained=str(tmp_path), gguf_file="tiny.gguf")
    tokenizer = load_tokenizer(spec)
    assert tokenizer("12 + é")["input_ids"] == byte_tokenizer()("12 + é")["input_ids"]
    assert tokenizer("ab")["input_ids"] == [259]
    assert (tokenizer.eos_token_id, tokenizer.padding_side) == (2, "left")
    found = load_model(spec, tokenizer)
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        torch.testing.assert_close(found.eval()(IDS).logits, expected, rtol=1e-5, atol=1e-6)
        assert all(weight.requires_grad for weight in found.parameters())
        found.save_pretrained(tmp_path / "plain")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
        torch.testing.assert_close(plain.eval()(IDS).logits, expected, rtol=1e-5, atol=1e-6)
    assert load_model(PolicySpec(**{**vars(spec), "dtype": "bfloat16"}), tokenizer).dtype == torch.bfloat16


def test_files_that_cannot_be_opened_are_refused_in_one_line(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"no weights")
    for name in ("none.gguf", "broken.gguf"):
        spec = PolicySpec(pretrained=str(tmp_path), gguf_file=name, tokenizer="bytes")
        with pytest.raises(ValueError, match=r"^model\.policy\.pretrained: cannot open ") as refused:
            load_model(spec, load_tokenizer(spec))
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"^model\.policy\.gguf_file is a file in `pretrained`, which is missing"):
        PolicySpec(config={"model_type": "llama"}, tokenizer="bytes", gguf_file="tiny.gguf")
