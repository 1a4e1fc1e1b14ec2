"""RPT: what the policy is asked, what of it is read, and that all of it runs as training."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, quiet_trainer
from grpo_runs import Watch
from math_runs import real_file
from tiny_runs import lit_rl
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rl.algorithms import RPT
from lit_rl.datamodules import Arithmetic, PositionSpec
from lit_rl.datamodules.positions import Positions
from lit_rl.evaluation import NextTokenEvaluation
from lit_rl.models import PolicySpec
from lit_rl.rewards import AnswerFormat, PrefixMatch
from lit_rl.sampling import Sampler
from lit_rl.tasks.infix import Grammar
from lit_rl.tasks.tokenizers import byte_tokenizer
from lit_rl.text.token_bytes import token_bytes
from lit_rl.text.windows import Windows

WHOLE = AnswerFormat(after="", opening="", closing="")


def spec(tokenizer="reasoning", **options) -> PolicySpec:
    return PolicySpec(config={"model_type": "llama", **TINY, **options}, tokenizer=tokenizer)


def rpt(tokenizer="reasoning", template="{context}<think>", **options) -> RPT:
    settings = {"sampler": Sampler(max_new_tokens=4), "evaluation": NextTokenEvaluation(4), "group_size": 4}
    return RPT(spec(tokenizer), template=template, **{**settings, **options})


def arithmetic(**options) -> Arithmetic:
    settings = {"batch_size": 4, "epoch_size": 16, "val_problems": 4, "test_problems": 4}
    return Arithmetic(Grammar(max_digits=1), positions=PositionSpec(labels_length=2), **{**settings, **options})


# --- options -----------------------------------------------------------------------------------------------------


def test_without_reasoning_the_whole_completion_is_the_prediction():
    assert rpt("bytes", template="direct").reward.answer == WHOLE
    assert rpt("bytes", template="v0").reward.answer == AnswerFormat()


# --- training ----------------------------------------------------------------------------------------------------


def trained(folder, data=None, steps=2, **options) -> tuple[RPT, Watch]:
    module, watch = rpt(**options), Watch()
    quiet_trainer(folder, max_steps=steps, callbacks=[watch]).fit(module, data or arithmetic())
    return module, watch


def test_rpt_trains_on_positions_of_arithmetic(tmp_path):
    _, watch = trained(tmp_path)
    assert all(sample.prompt.endswith("<think>") for sample in watch.rollouts[0].prompts.samples)
    assert {"rewards/prefix_match/mean", "rewards/answered/mean", "rewards/matched_tokens/mean"} <= watch.metrics[0].keys()


def test_the_reward_is_that_of_the_texts(tmp_path):
    """One byte of continuation: paid where it is the byte that follows."""
    options = {"tokenizer": "bytes", "template": "direct", "sampler": Sampler(max_new_tokens=1)}
    reward = PrefixMatch(WHOLE)
    windows = Windows.of_documents([[5]] * 8, [[number + 60] for number in range(8)])
    data = arithmetic()
    data.setup = lambda stage: None
    data.train_set = Positions(windows, token_bytes(byte_tokenizer()), 1)
    data.val_set = data.test_set = data.train_set
    data.endless = False
    _, watch = trained(tmp_path, data, reward=reward, group_size=64, **options)
    rollouts = watch.rollouts[0]
    truth = [sample.target[0] for sample in rollouts.prompts.samples for _ in range(64)]
    assert rollouts.rewards.tolist() == (rollouts.completion_ids[:, 0] == torch.tensor(truth)).float().tolist()
    assert rollouts.rewards.sum() > 0


def test_lm_coef_learns_the_texts_without_the_template(tmp_path):
    module, watch = trained(tmp_path, steps=1, lm_coef=0.5, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    losses, count = 0.0, 0
    for sample in watch.rollouts[0].prompts.samples:
        ids = torch.tensor([[*sample.context, *sample.target]])
        logp = module.policy.model(ids).logits.log_softmax(-1)[0, len(sample.context) - 1 : -1]
        losses -= float(logp.detach().gather(1, torch.tensor(sample.target)[:, None]).sum())
        count += len(sample.target)
    assert watch.metrics[0]["lm_loss"] == pytest.approx(losses / count, rel=1e-5)


def test_every_option_of_grpo_is_one_of_rpt():
    module = rpt(baseline="leave_one_out", advantage_scale="none", kl_coef=0.1)
    assert (module.baseline, module.advantage_scale, module.kl_coef) == ("leave_one_out", "none", 0.1)


# --- Liquid models and real data through the command line --------------------------------------------------------

LFM = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_dense_layers": 1,
    },
}
PROBLEM = {"problem": "What is 2+2?", "solution": "Two and two is $4$. So it is \\boxed{4}.", "answer": "4", "difficulty": 1.5}


def problems(folder: Path) -> str:
    rows = [PROBLEM | {"problem": f"What is {n}+2?", "domain": ["Mathematics -> Algebra"]} for n in range(40)]
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def saved_model(folder: Path, model_type: str) -> str:
    options = {**TINY, **LFM.get(model_type, {}), "max_position_embeddings": 2048}
    tokenizer = byte_tokenizer()
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ends, **options)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def small_run(folder: Path, model: str, data: str) -> list[str]:
    flags = {
        "model.policy.pretrained": model,
        "model.sampler.max_new_tokens": 4,
        "model.evaluation.max_new_tokens": 4,
        "model.max_context": 64,
        "model.group_size": 2,
        "data.path": data,
        "data.positions.eval_positions": 4,
        "data.batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32",
        "trainer.strategy": "auto",
        "trainer.accumulate_grad_batches": 1,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.default_root_dir": folder / "run",
        "trainer.callbacks": "[{class_path: HFExport}]",
        "trainer.enable_progress_bar": "false",
    }
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


@pytest.mark.parametrize("model_type", LFM)
def test_a_liquid_model_runs_rpt_with_lora_and_all_callbacks_by_its_config(tmp_path, monkeypatch, model_type):
    monkeypatch.setenv("HOME", str(tmp_path))  # where entropies are kept
    flags = small_run(tmp_path, saved_model(tmp_path, model_type), problems(tmp_path))
    callbacks = "[{class_path: EntropyFilter, init_args: {threshold: 2.0}}, DynamicSampling, TemperatureSchedule, HFExport]"
    flags[flags.index("--trainer.callbacks") + 1] = callbacks
    lit_rl("fit", "--config", f"rpt_{model_type}", *flags)
    assert (tmp_path / "run" / "export" / "adapter_config.json").is_file()
    lit_rl("validate", "--config", f"rpt_{model_type}", *flags)


def test_the_setting_of_the_paper_runs_small(tmp_path):
    flags = small_run(tmp_path, saved_model(tmp_path, "llama"), problems(tmp_path))
    lit_rl("fit", "--config", "rpt_omni_math", *flags)
    assert (tmp_path / "run" / "export" / "config.json").is_file()


@pytest.mark.parametrize(("data", "file"), [("OmniMath", "omni_math_rule.jsonl"), ("GSM8K", ".")])
def test_two_steps_of_rpt_on_real_data(tmp_path, data, file):
    path = Path(real_file("gsm8k_train.jsonl")).parent / file
    flags = small_run(tmp_path, saved_model(tmp_path, "llama"), str(path))
    lit_rl("fit", "--config", "rpt_omni_math", "--data", data, *flags)
    assert (tmp_path / "run" / "export" / "config.json").is_file()
