"""A real pretrained model: SmolLM2-135M-Instruct, which `make smollm2` puts into models/smollm2. One run per algorithm.

It has what models from scratch lack: a chat template, padding by its end token, bfloat16 weights, subwords.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import PagedAdamW8bit
from conftest import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from math_runs import real_file, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rl.algorithms import GRPO, PPO, RPT, SFT
from lit_rl.callbacks import HFExport
from lit_rl.datamodules import GSM8K, LargestNumber, OmniMath, PositionSpec
from lit_rl.evaluation import Evaluation, NextTokenEvaluation
from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.models.merging import merge_export
from lit_rl.models.quantization import QuantizedLinear
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.types import TokenBatch

# A processor without bfloat16 instructions computes in it several times slower than in float32.
PRECISION = "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
FOLDER = Path(__file__).parents[2] / "models" / "smollm2"
TEXT = "The sum of two numbers is 12 and their difference is 4. So the larger number is 8, and the smaller one is 4."

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="models/smollm2 is missing; `make smollm2` makes it")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(PolicySpec(pretrained=str(FOLDER)))


def test_scores_are_those_of_the_models_own_forward(tokenizer):
    policy = Policy(PolicySpec(pretrained=str(FOLDER)), tokenizer)
    check_policy(policy)
    assert policy.capabilities.packs
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        expected = policy.causal_lm(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        target = torch.ones(1, len(ids), dtype=torch.bool)
        target[0, 0] = False
        found = policy.score_sequences(TokenBatch(ids[None], torch.tensor([len(ids)]), target)).logprobs[0, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- a run of each algorithm: chat template or positions, LoRA, bfloat16, resume, export -----------------------------


class Length(Reward):
    """Differs within most groups."""

    def score(self, rollouts):
        return torch.tensor([float(len(text) % 7) for text in rollouts.texts])


def settings(**options):
    policy = PolicySpec(pretrained=str(FOLDER), lora=LoRASpec(r=4))
    adamw = functools.partial(torch.optim.AdamW, lr=1e-3)
    return {"policy": policy, "optimizer": adamw, "evaluation": Evaluation(max_new_tokens=4), **options}


def sampled(**options):
    return settings(sampler=Sampler(max_new_tokens=6), group_size=2, **options)


def questions(folder):
    return LargestNumber(batch_size=2, val_problems=4, test_problems=4)


def real_solutions(folder):
    """The first problems of GSM8K with their solutions."""
    rows = [json.loads(line) for line in Path(real_file("gsm8k_train.jsonl")).read_text(encoding="utf-8").splitlines()[:40]]
    return GSM8K(write_jsonl(folder / "train.jsonl", rows[:32]), write_jsonl(folder / "test.jsonl", rows[32:]), batch_size=2)


def real_positions(folder):
    """Positions inside the first solutions of Omni-MATH."""
    lines = Path(real_file("omni_math_rule.jsonl")).read_text(encoding="utf-8").splitlines()[:24]
    return OmniMath(write_jsonl(folder / "problems.jsonl", lines), positions=PositionSpec(), batch_size=2)


RUNS = {
    "sft": (lambda: SFT(**settings()), real_solutions),
    "grpo": (lambda: GRPO(**sampled(reward=Length())), questions),
    "ppo": (lambda: PPO(**sampled(reward=Length(), epochs=1, minibatches=1)), questions),
    "rpt": (
        lambda: RPT(
            **sampled(template="direct", evaluation=NextTokenEvaluation(max_new_tokens=4), reward=Length(), max_context=64)
        ),
        real_positions,
    ),
}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_exactly_and_its_export_is_the_policy(name, tmp_path, tokenizer):
    make, make_data = RUNS[name]
    data = make_data(tmp_path)

    def fit(*callbacks, resume=None):
        module = make()
        saved = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"precision": PRECISION, "enable_checkpointing": True, "callbacks": [saved, *callbacks]}
        quiet_trainer(tmp_path, max_steps=2, **options).fit(module, data, ckpt_path=resume)
        return module

    whole = fit()
    resumed = fit(HFExport(), resume=tmp_path / "checkpoints" / "step=1.ckpt")
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())

    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.no_grad():
        logits = opened(ids).logits
        torch.testing.assert_close(logits, resumed.policy.model.eval()(ids).logits, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(logits, start(ids).logits, atol=0.01)  # the adapter has learned something
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == tokenizer.chat_template


@pytest.mark.long
def test_a_qlora_step_and_its_merged_export(tmp_path, tokenizer):
    """SFT as `configs/sft_gsm8k_qlora.yaml` has it, two prompts of two accumulated."""
    lora = LoRASpec(r=32, alpha=16, dropout=0.05)
    policy = PolicySpec(pretrained=str(FOLDER), quantization="nf4", lora=lora, gradient_checkpointing=True)
    optimizer = functools.partial(PagedAdamW8bit, lr=1e-3, weight_decay=0.0)
    module = SFT(**settings(policy=policy, optimizer=optimizer, completion_only=False))
    options = {"precision": PRECISION, "accumulate_grad_batches": 2, "callbacks": [HFExport()]}
    quiet_trainer(tmp_path, max_steps=1, **options).fit(module, real_solutions(tmp_path))
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLinear)]
    size = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer.state_dict().values())
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    merged = merge_export(tmp_path / "export", tmp_path / "merged", torch.bfloat16)
    print(f"{size / (2 * numbers):.3f} of bfloat16; merged {merged}")
    assert size / (2 * numbers) < 0.35
    assert 0 < merged.difference < 0.05
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    again = load_model(PolicySpec(pretrained=str(tmp_path / "export"), quantization="nf4"), tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, module.policy.model.eval()(ids).logits)
