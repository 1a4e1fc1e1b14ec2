"""HFExport in small runs: what it may replace, what it exports, and what it refuses before the first step."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.callbacks import HFExport
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler

LORA = LoRASpec(r=4, alpha=8)
IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])
MOVING = functools.partial(torch.optim.AdamW, lr=1e-2)


class Length(Reward):
    """A reward that differs within most groups."""

    def score(self, rollouts):
        return torch.tensor([text.count("<") + len(text) % 5 for text in rollouts.texts], dtype=torch.float32)


def sft(spec=None):
    return SFT(spec or tiny_spec(), optimizer=MOVING, evaluation=Evaluation(max_new_tokens=4))


def sampled(kind, spec, **options):
    settings = {"sampler": Sampler(max_new_tokens=4), "reward": Length(), "optimizer": MOVING, "evaluation": Evaluation(4)}
    return kind(spec, **{**settings, **options})


def fit(folder, module, *callbacks, ckpt_path=None, **options):
    trainer = quiet_trainer(folder, callbacks=list(callbacks), **{"max_steps": 2, **options})
    trainer.fit(module, tiny_data(), ckpt_path=ckpt_path)
    return trainer


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(folder, module, callback, match):
    """Before the first step, and with every file as it was."""
    before = files(folder)
    trainer = quiet_trainer(folder / "run", callbacks=[callback], max_steps=2)
    with pytest.raises(ValueError, match=match) as refusal:
        trainer.fit(module, tiny_data())
    assert "\n" not in str(refusal.value)
    assert trainer.global_step == 0
    assert files(folder) == before


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The export of a run."""
    folder = tmp_path_factory.mktemp("base")
    fit(folder, sft(), HFExport())
    return folder / "export"


# --- what may be replaced ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["..", ".", "", "../work", "{absolute}", "logs", "../a_file"])
def test_a_folder_that_no_export_made_is_refused(target, tmp_path):
    for name in ("work", "run", "run/logs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("ten years")
    (tmp_path / "a_file").write_text("")
    callback = HFExport(target.format(absolute=tmp_path / "work"))
    assert_refused(tmp_path, sft(), callback, "own files|not replaced")


def test_the_checkpoints_folder_is_refused_before_it_exists(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved" / "all", every_n_train_steps=1)
    with pytest.raises(ValueError, match="holds the run's own files"):
        fit(tmp_path, sft(), HFExport("saved"), saver, enable_checkpointing=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "a_file").write_text("")
    assert_refused(tmp_path, sft(), HFExport(str(tmp_path / "a_file" / "export")), "HFExport cannot write to")


def test_the_next_run_in_a_folder_replaces_its_export(tmp_path):
    for _ in range(2):
        module = sft()
        fit(tmp_path, module, HFExport())
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(found), logits(module.policy.model), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export").symlink_to(tmp_path / "disk")
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1)
    fit(tmp_path / "run", sft(), HFExport(), saver, enable_checkpointing=True)
    assert (tmp_path / "run" / "export").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()


# --- what a run starts from ----------------------------------------------------------------------------------------------


def started(tmp_path, base, source):
    """A module that starts from ``run/export``, in one of its parts."""
    place = tmp_path / "run" / "export"
    shutil.copytree(base, place)
    own = PolicySpec(pretrained=str(place))
    if source == "tokenizer":
        return sft(PolicySpec(config=tiny_spec().config, tokenizer=str(place)))
    if source == "critic":
        return sampled(PPO, tiny_spec(), critic=own, epochs=1, minibatches=1)
    if source == "base of an adapter":
        fit(tmp_path / "adapter", sft(PolicySpec(pretrained=str(place), lora=LORA)), HFExport())
        return sft(PolicySpec(pretrained=str(tmp_path / "adapter" / "export")))
    return sft(PolicySpec(pretrained=str(place), lora=LORA if source == "base" else None))


@pytest.mark.parametrize("source", ["policy", "base", "base of an adapter", "tokenizer", "critic"])
def test_a_run_does_not_write_over_what_it_starts_from(source, base, tmp_path):
    module = started(tmp_path, base, source)
    assert_refused(tmp_path, module, HFExport(), "from which this run starts")


def test_a_critics_export_does_not_replace_the_policys_start(base, tmp_path):
    place = tmp_path / "run" / "export_critic"
    shutil.copytree(base, place)
    module = sampled(PPO, PolicySpec(pretrained=str(place)), critic=tiny_spec(), epochs=1, minibatches=1)
    assert_refused(tmp_path, module, HFExport(), "from which this run starts")


def test_a_run_whose_reference_has_changed_is_not_resumed(base, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(base, start)

    def module():
        return sampled(GRPO, PolicySpec(pretrained=str(start)), group_size=2, kl_coef=0.1)

    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, module(), saver, enable_checkpointing=True)
    fit(tmp_path, module(), ckpt_path=tmp_path / "saved" / "step=1.ckpt")
    file = start / "model.safetensors"
    save_file({name: 1.01 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="the reference of the KL penalty is not the model that this run began with"):
        fit(tmp_path, module(), ckpt_path=tmp_path / "saved" / "step=1.ckpt")


# --- what is exported ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export_first", [True, False])
def test_averaged_weights_are_exported_as_they_are_validated_and_saved(export_first, tmp_path):
    callbacks = [HFExport(), EMAWeightAveraging(decay=0.5)]
    saver = ModelCheckpoint(tmp_path, filename="saved", every_n_train_steps=3)
    module = sft()
    order = callbacks if export_first else callbacks[::-1]
    fit(tmp_path, module, *order, saver, enable_checkpointing=True, max_steps=3)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, saved["state_dict"][f"policy.model.{name}"]), name
    current = saved["current_model_state"]["policy.model.lm_head.weight"]
    assert not torch.allclose(exported["lm_head.weight"], current, atol=1e-4)


def test_exporting_averages_changes_no_training(tmp_path):
    runs = []
    for callbacks in ([], [HFExport()]):
        torch.manual_seed(1)
        saver = ModelCheckpoint(tmp_path, filename="saved", every_n_train_steps=1, save_top_k=1)
        module = sft(tiny_spec("gpt2"))  # its dropout draws from the global generator
        fit(tmp_path, module, *callbacks, EMAWeightAveraging(decay=0.5), saver, enable_checkpointing=True, max_steps=3)
        runs.append(module.state_dict())
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_the_head_of_tied_embeddings_is_exported_as_it_was_trained(tmp_path):
    lora = LoRASpec(r=4, alpha=8, target_modules=["lm_head", "q_proj"])
    module = sft(tiny_spec(lora=lora, config={"tie_word_embeddings": True}))
    fit(tmp_path, module, HFExport(), max_steps=5)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(found), logits(module.policy.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_half_precision_stays(lora, tmp_path):
    module = sft(tiny_spec(lora=lora, dtype="bfloat16" if lora else "float32"))
    fit(tmp_path, module, HFExport(), precision=None if lora else "bf16-mixed")
    expected = torch.bfloat16 if lora else torch.float32
    assert {value.dtype for value in load_file(tmp_path / "export" / "model.safetensors").values()} == {expected}


def test_each_stage_of_a_chain_trains_all_weights_of_the_export_before_it(base, tmp_path):
    """SFT with LoRA, GRPO, PPO; the last export is the policy, and its value head comes back."""
    stages = {
        "sft": lambda start: sft(PolicySpec(pretrained=start, lora=LORA)),
        "grpo": lambda start: sampled(GRPO, PolicySpec(pretrained=start), group_size=4),
        "ppo": lambda start: sampled(PPO, PolicySpec(pretrained=start), epochs=1, minibatches=1, lam=1.0),
    }
    start = str(base)
    for name, build in stages.items():
        module = build(start)
        module.configure_model()
        before = {key: weight.detach().clone() for key, weight in module.policy.named_parameters()}
        fit(tmp_path / name, module, HFExport(), max_steps=3)
        for key, weight in module.policy.named_parameters():
            assert torch.equal(weight, before[key]) == (name == "sft" and "lora" not in key), (name, key)
        start = str(tmp_path / name / "export")
        spec = PolicySpec(pretrained=start)
        torch.testing.assert_close(
            logits(load_model(spec, load_tokenizer(spec))), logits(module.policy.model), rtol=1e-4, atol=1e-4
        )
    again = sampled(PPO, PolicySpec(pretrained=start))
    again.configure_model()
    assert torch.equal(again.policy.value_head.weight, module.policy.value_head.weight)
    assert float(again.policy.value_head.weight.abs().sum()) > 0


# --- saving is tried before the first step ----------------------------------------------------------------------------


def with_generation_flags(base, folder, **flags):
    shutil.copytree(base, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | flags))
    return sft(PolicySpec(pretrained=str(folder)))


def test_sampling_flags_without_do_sample_do_not_end_a_run(base, tmp_path):
    fit(tmp_path, with_generation_flags(base, tmp_path / "start", temperature=0.6, top_p=0.9), HFExport())
    saved = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


def test_a_model_that_cannot_be_saved_is_refused(base, tmp_path):
    module = with_generation_flags(base, tmp_path / "start", num_beams=1, early_stopping=True)
    assert_refused(tmp_path, module, HFExport(), "generation_config.json of the model cannot be saved again")


# --- adapters and their bases -----------------------------------------------------------------------------------------


def test_an_adapter_opens_from_any_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    module = sft(PolicySpec(pretrained="./export", lora=LORA))
    fit(tmp_path, module, HFExport())
    monkeypatch.chdir(tmp_path)
    spec = PolicySpec(pretrained="./export")
    model = load_model(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=1e-5, atol=1e-5)


def test_a_missing_base_is_named(base, tmp_path):
    shutil.copytree(base, tmp_path / "start")
    fit(tmp_path, sft(PolicySpec(pretrained=str(tmp_path / "start"), lora=LORA)), HFExport())
    shutil.rmtree(tmp_path / "start")
    spec = PolicySpec(pretrained=str(tmp_path / "export"))
    with pytest.raises(ValueError, match=f"the adapter's base '{tmp_path / 'start'}' cannot be opened"):
        load_model(spec, load_tokenizer(spec))
