"""``lit-rl export``: a QLoRA run by the command line, its adapter merged, and wrong arguments in one line."""

import pytest
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml
from transformers import AutoModelForCausalLM

from lit_rl.cli.export import parse


@pytest.mark.long
def test_a_qlora_run_by_flags_is_merged_and_evaluated(tmp_path, capsys):
    model = {"model_type": "llama", "max_position_embeddings": 64}
    base = tiny_config(tmp_path / "base", callbacks=("HFExport",), max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    base["model"]["init_args"]["policy"] = {"config": model, "size": "tiny", "tokenizer": "arithmetic"}
    lit_rl("fit", "--config", write_yaml(tmp_path / "base.yaml", base))
    config = tiny_config(tmp_path / "run", callbacks=("HFExport",))
    config["model"]["init_args"]["policy"] = {"pretrained": str(tmp_path / "base" / "export")}
    file = write_yaml(tmp_path / "qlora.yaml", config)
    # The keys as the config for the 8B model has them, by flags.
    quantized = ["--model.policy.quantization", "nf4", "--model.policy.lora.r", "4", "--model.policy.lora.dropout", "0.05"]
    optimizer = ["--model.optimizer", "bitsandbytes.optim.PagedAdamW8bit", "--model.optimizer.lr", "1e-2"]
    lit_rl("fit", "--config", file, *quantized, *optimizer, "--model.policy.gradient_checkpointing", "true")
    capsys.readouterr()
    lit_rl("export", tmp_path / "run" / "export", tmp_path / "merged", "--merge")
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith(f"{tmp_path / 'merged'}: merged in bfloat16. Log-probabilities differ by ")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.dtype is not None
    evaluate = ["validate", "--config", file, "--model.policy.pretrained"]
    # The adapter on its quantized base, in 16 bits on the dequantized one, and merged.
    lit_rl(*evaluate, tmp_path / "run" / "export", "--model.policy.quantization", "nf4")
    lit_rl(*evaluate, tmp_path / "run" / "export", "--model.policy.dtype", "bfloat16")
    lit_rl(*evaluate, tmp_path / "merged")


def test_arguments_are_read_in_any_order(tmp_path):
    (tmp_path / "a").mkdir()
    words = [str(tmp_path / "a"), str(tmp_path / "b")]
    expected = (tmp_path / "a", tmp_path / "b", "float32")
    assert parse(["--merge", *words, "--dtype", "float32"]) == expected
    assert parse([words[0], "--dtype=float32", words[1], "--merge"]) == expected
    assert parse([*words, "--merge"])[2] == "bfloat16"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["."], "write lit-rl export ADAPTER OUT --merge"),
        ([".", "out"], "write lit-rl export ADAPTER OUT --merge"),
        (["nowhere", "out", "--merge"], "the folder 'nowhere' does not exist"),
        ([".", "out", "--merge", "--dtype", "int8"], "--dtype is 'int8'; write one of bfloat16, float16, float32."),
        ([".", "out", "--merg"], "unknown option '--merg'. Did you mean '--merge'?"),
        ([".", ".", "--merge"], "OUT is the folder of the adapter itself"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(args, message):
    assert message in refusal("export", *args)
