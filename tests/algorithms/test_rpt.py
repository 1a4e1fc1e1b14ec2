"""RPT: what the policy is asked, what of it is read, and that all of it runs as training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, quiet_trainer
from grpo_runs import Watch
from math_runs import real_file
from tiny_rollouts import prompts_of, rollouts_of
from tiny_runs import lit_rl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_rl.algorithms import RPT
from lit_rl.datamodules import Arithmetic, PositionSpec, ReasonedArithmetic
from lit_rl.datamodules.base import collate
from lit_rl.datamodules.positions import Positions
from lit_rl.datamodules.reasoned_arithmetic import demonstrate
from lit_rl.evaluation import NextTokenEvaluation
from lit_rl.models import PolicySpec
from lit_rl.rewards import AnswerFormat, PrefixMatch
from lit_rl.sampling import Sampler
from lit_rl.tasks.infix import Grammar
from lit_rl.tasks.tokenizers import byte_tokenizer
from lit_rl.text.templates import TEMPLATES, fill_in
from lit_rl.text.token_bytes import token_bytes, write_pieces
from lit_rl.text.windows import Windows
from lit_rl.types import Sample

WHOLE = AnswerFormat(after="", opening="", closing="")


def spec(tokenizer="reasoning", **options) -> PolicySpec:
    return PolicySpec(config={"model_type": "llama", **TINY, **options}, tokenizer=tokenizer)


def rpt(tokenizer="reasoning", template="{context}<think>", **options) -> RPT:
    settings = {"sampler": Sampler(max_new_tokens=4), "evaluation": NextTokenEvaluation(4), "group_size": 4}
    return RPT(spec(tokenizer), template=template, **{**settings, **options})


def arithmetic(**options) -> Arithmetic:
    settings = {"batch_size": 4, "epoch_size": 16, "val_problems": 4, "test_problems": 4}
    return Arithmetic(Grammar(max_digits=1), positions=PositionSpec(labels_length=2), **{**settings, **options})


def position(module: RPT, context: str, follows: str) -> Sample:
    """A position of a text, given as what stands before and behind it."""
    ids, target = (module.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, follows))
    pieces = token_bytes(module.tokenizer)
    return Sample("", "", write_pieces([pieces[token] for token in target]), 0, ids, target)


def asked(module: RPT, *samples: Sample):
    return module.render(collate(module.tokenizer, list(samples)))


# --- what the policy is asked ------------------------------------------------------------------------------------


def test_a_template_goes_around_the_context():
    module = rpt()
    prompts = asked(module, position(module, "<bos><big>12+34<answer>4", "6"))
    assert prompts.samples[0].prompt == "<bos><big>12+34<answer>4<think>"


def test_the_prompt_is_the_tokens_of_the_filled_in_template():
    module = rpt()
    prompts = asked(module, position(module, "<bos>1", "2"), position(module, "<bos>12+3", "4"))
    tokens = [module.tokenizer.convert_ids_to_tokens(row[keep]) for row, keep in zip(prompts.ids, prompts.mask, strict=True)]
    assert tokens == [["<bos>", "1", "<think>"], ["<bos>", "1", "2", "+", "3", "<think>"]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_shows_the_context_once_and_asks_for_a_box(name):
    text = fill_in(name, "a {context} of its own")
    assert text.count("a {context} of its own") == 1
    assert r"\boxed{" in text.replace("a {context} of its own", "")


def test_the_templates_are_seven_different_ones():
    assert list(TEMPLATES) == [f"v{number}" for number in range(7)]
    assert len(set(TEMPLATES.values())) == 7


def test_the_chat_template_of_a_tokenizer_is_put_around_the_question():
    module = rpt("bytes", template="Go on: {context}")
    module.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>"
    prompts = asked(module, position(module, "one two", " three"))
    assert prompts.samples[0].prompt == "[user]Go on: one two[assistant]<think>"


def test_without_reasoning_the_tokens_of_the_text_stay_as_they_are():
    module = rpt("bytes", template="direct")
    # "ab" is one token in the text's vocabulary, but the text has it as two.
    merged = Tokenizer(models.BPE(vocab={"<eos>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    merged.pre_tokenizer, merged.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    module.tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, eos_token="<eos>", pad_token="<eos>")
    assert module.tokenizer("ab")["input_ids"] == [3]
    prompts = asked(module, Sample("", "", "b", 0, [1, 2], [2]))
    assert prompts.ids.tolist() == [[1, 2]]
    assert prompts.samples[0].prompt == "ab"


def test_older_tokens_than_max_context_are_left_out():
    module = rpt(max_context=3)
    prompts = asked(module, position(module, "<bos>12345", "6"))
    assert prompts.samples[0].prompt == "345<think>"


def test_samples_that_are_no_positions_are_refused():
    module = rpt()
    with pytest.raises(ValueError, match=r"sample 7 is no position of a text; .*data\.init_args\.positions"):
        asked(module, Sample("<bos>1+1<answer>", "2", "2", 7))


@pytest.mark.parametrize("template", ["v7", "no place for it", "{context} and {context}"])
def test_what_is_no_template_is_refused(template):
    with pytest.raises(ValueError, match=r"model.template is .*write v0, v1, .*direct, or a text that has \{context\} once"):
        rpt(template=template)


# --- what is read of a completion --------------------------------------------------------------------------------


def test_completions_are_read_byte_for_byte():
    module = rpt("bytes")
    ids = module.tokenizer("é!")["input_ids"]  # C3 A9 21
    rollouts = rollouts_of(prompts_of([5]), 2, [ids[1:], ids], truncated=torch.tensor([True, True]))
    half, whole = module.decode(rollouts)
    assert half.encode("utf-8", "surrogateescape") == b"\xa9!"
    assert whole == "é!"


def test_the_end_token_is_no_part_of_the_text():
    module = rpt("bytes")
    (letter,) = module.tokenizer("a")["input_ids"]
    rollouts = rollouts_of(prompts_of([5]), 2, [[letter, module.tokenizer.eos_token_id]] * 2)
    assert module.decode(rollouts) == ["a", "a"]


def test_an_id_beyond_the_tokenizer_is_no_text():
    """Heads are often padded to a round number of ids."""
    module = RPT(spec("bytes", vocab_size=272), template="direct")
    module.configure_model()
    (letter,) = module.tokenizer("a")["input_ids"]
    rollouts = rollouts_of(prompts_of([5]), 2, [[letter, 271]] * 2, truncated=torch.tensor([True, True]))
    assert module.decode(rollouts) == ["a", "a"]


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


def test_every_objective_option_of_grpo_is_one_of_rpt(tmp_path):
    module, _ = trained(tmp_path, steps=1, baseline="leave_one_out", advantage_scale="none", kl_coef=0.1)
    assert module.reference is not None


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
def test_three_steps_of_rpt_on_real_data(tmp_path, data, file):
    path = Path(real_file("gsm8k_train.jsonl")).parent / file
    flags = small_run(tmp_path, saved_model(tmp_path, "llama"), str(path))
    flags[flags.index("--trainer.max_steps") + 1] = "3"
    lit_rl("fit", "--config", "rpt_omni_math", "--data", data, *flags)
    assert (tmp_path / "run" / "export" / "config.json").is_file()


# --- the place of a sample in its text ---------------------------------------------------------------------------


def test_positions_of_structured_samples_lie_inside_the_solution():
    windows = Windows.of_documents([[1, 2]], [[3, 4, 5]])
    positions = Positions(windows, [bytes([65 + number]) for number in range(6)], labels_length=2)
    shown = [(list(each.context), list(each.target), each.reference) for each in (positions[n] for n in range(len(positions)))]
    assert shown == [([1, 2], [3, 4], "D│E"), ([1, 2, 3], [4, 5], "E│F"), ([1, 2, 3, 4], [5], "F")]


def test_a_position_keeps_its_number_when_others_are_left_out():
    positions = Positions(Windows.of_documents([[1, 2]], [[3, 4, 5]]), [b"x"] * 6, 1)
    positions.keep(np.array([False, True, True]))
    assert [positions[place].number for place in range(len(positions))] == [1, 2]


# --- what SFT shows a model before RPT ---------------------------------------------------------------------------


def test_a_demonstration_reasons_from_the_lowest_digit_and_predicts_what_follows():
    sample = Sample("<bos><big>57+68<answer>", "125", "125", 3)
    shown = demonstrate(sample)
    begun = shown.prompt.removeprefix(sample.prompt).removesuffix("<think>")
    reasoning, _, said = shown.completion.partition("</think>")
    assert reasoning == "521"
    assert "125".startswith(begun + AnswerFormat(after="").read(said))
    assert shown.reference == "│".join("125"[len(begun) :])


def test_demonstrations_are_right_by_the_reward_that_judges_them():
    data = ReasonedArithmetic(Grammar(max_digits=2), epoch_size=64, val_problems=64, test_problems=1)
    data.setup("fit")
    judge = PrefixMatch()
    assert all(judge.is_right(judge.answer.read(sample.completion).encode(), sample) for sample in data.val_set)


def test_about_half_of_the_training_samples_are_demonstrations():
    data = ReasonedArithmetic(Grammar(max_digits=2), epoch_size=200, val_problems=1, test_problems=1)
    data.setup("fit")
    shown = sum(data.train_set[number].prompt.endswith("<think>") for number in range(200))
    assert 70 < shown < 130
