"""The callbacks in small runs: exports, samples, improvement, curriculum, and one of the user's own."""

import json
import resource

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from peft import AutoPeftModelForCausalLM
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import Curriculum, HFExport, Improvement, SampleTable
from lit_rl.datamodules import PromptDataModule
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import LoRASpec, PolicySpec
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.models.reopened import probe_policy
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.tasks.infix import Grammar
from lit_rl.types import Sample

LORA = LoRASpec(r=4, alpha=8)
IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


def sft(spec=None):
    return SFT(spec or tiny_spec(), evaluation=Evaluation(max_new_tokens=4))


def grpo(spec=None, **options):
    settings = {"sampler": Sampler(max_new_tokens=4), "group_size": 2, "evaluation": Evaluation(max_new_tokens=4)}
    return GRPO(spec or tiny_spec(), **{**settings, **options})


def fit(folder, module, *callbacks, data=None, ckpt_path=None, **options):
    """A few steps; returns the trainer."""
    trainer = quiet_trainer(folder, callbacks=list(callbacks), **{"max_steps": 2, **options})
    trainer.fit(module, data or tiny_data(), ckpt_path=ckpt_path)
    return trainer


def export(module, folder, **options):
    """An export of a module's policy outside of a run."""
    weights, probe = whole_weights(module.policy), probe_policy(module.policy, module.tokenizer)
    export_policy(
        module.policy, **{"tokenizer": module.tokenizer, "folder": folder, "weights": weights, "probe": probe} | options
    )


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


# --- HFExport --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A module that was trained, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("export")
    module = sft()
    fit(folder, module, HFExport())
    return module, folder / "export"


def test_transformers_opens_the_export_with_equal_logits(exported):
    module, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=0, atol=0)


def test_the_tokenizer_of_the_export_is_the_policys(exported):
    module, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<bos><big>12+-34<answer>"
    assert tokenizer(text)["input_ids"] == module.tokenizer(text)["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (module.tokenizer.pad_token_id, module.tokenizer.eos_token_id)
    assert tokenizer.padding_side == module.tokenizer.padding_side


def test_the_next_run_opens_the_export(exported):
    module, folder = exported
    spec = PolicySpec(pretrained=str(folder))
    model = load_model(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=0, atol=0)


def test_the_export_follows_each_checkpoint(tmp_path):
    steps = []

    class Look(ModelCheckpoint):
        def on_train_batch_end(self, trainer, module, *rest):
            super().on_train_batch_end(trainer, module, *rest)
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
            steps.append(torch.equal(logits(model), logits(module.policy.model)))
            module.policy.train()

    fit(tmp_path, sft(), HFExport(), Look(tmp_path, every_n_train_steps=1), enable_checkpointing=True)
    assert steps == [True, True]


def test_exporting_changes_no_training(tmp_path):
    runs = []
    for callbacks in ([], [HFExport(), ModelCheckpoint(tmp_path, every_n_train_steps=1)]):
        module = sft(tiny_spec(lora=LORA))
        fit(tmp_path, module, *callbacks, enable_checkpointing=bool(callbacks), max_steps=3)
        runs.append(module.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_an_export_that_fails_leaves_the_older_one_whole(exported, tmp_path):
    module, _ = exported
    folder = tmp_path / "export"
    export(module, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # stands for a full disk: the weights do not fit
    try:
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            export(module, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_that_fails_leaves_nothing_unfinished(exported, tmp_path):
    module, _ = exported
    (tmp_path / "file").write_text("")
    with pytest.raises(AttributeError):
        export(module, tmp_path / "export", tokenizer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_older_export_is_replaced_whole(exported, tmp_path):
    module, _ = exported
    folder = tmp_path / "export"
    export(module, folder)
    (folder / "stale.txt").write_text("of an older export")
    export(module, folder)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_lora_on_a_model_from_scratch_is_exported_merged(tmp_path):
    module = sft(tiny_spec(lora=LORA))
    fit(tmp_path, module, HFExport())
    assert not (tmp_path / "export" / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def adapter(exported, tmp_path_factory):
    """A module whose adapter was trained on the exported folder, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("adapter")
    module = sft(PolicySpec(pretrained=str(exported[1]), lora=LORA))
    fit(folder, module, HFExport(), max_steps=3)
    return module, folder / "export"


def test_lora_on_a_folder_is_exported_as_an_adapter(adapter):
    module, folder = adapter
    assert (folder / "adapter_config.json").is_file()
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=0, atol=0)


def test_the_next_run_opens_an_adapter(adapter):
    module, folder = adapter
    spec = PolicySpec(pretrained=str(folder))
    model = load_model(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=1e-5, atol=1e-5)


def test_an_adapter_on_an_adapter_opens_with_equal_logits(adapter, tmp_path):
    module = sft(PolicySpec(pretrained=str(adapter[1]), lora=LORA))
    fit(tmp_path, module, HFExport(), max_steps=3)
    spec = PolicySpec(pretrained=str(tmp_path / "export"))
    model = load_model(spec, load_tokenizer(spec))
    torch.testing.assert_close(logits(model), logits(module.policy.model), rtol=1e-5, atol=1e-5)


# --- SampleTable -----------------------------------------------------------------------------------------------------


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_samples_are_written_every_n_steps(tmp_path):
    fit(tmp_path, grpo(kl_coef=0.1), SampleTable(every_n_steps=2, rows=3), max_steps=5)
    assert [entry["step"] for entry in samples_of(tmp_path)] == [0, 0, 0, 2, 2, 2, 4, 4, 4]


def test_a_sample_holds_prompt_completion_reward_parts_and_advantage(tmp_path):
    fit(tmp_path, grpo(reward=Even(), kl_coef=0.1), SampleTable(rows=16), max_steps=1)
    entries = samples_of(tmp_path)
    names = [
        "step",
        "prompt",
        "completion",
        "reference",
        "reward",
        "rewards/even",
        "advantage",
        "truncated",
        "length",
        "multiplicity",
    ]
    assert list(entries[0]) == names
    for entry in entries:
        assert entry["prompt"].startswith("<bos><big>")
        assert entry["reward"] == entry["rewards/even"] == float(len(entry["completion"]) % 2 == 0)
        assert entry["length"] == 4 or not entry["truncated"]
    assert len({entry["prompt"] for entry in entries}) > 1


class Even(Reward):
    """1 for a text of even length."""

    def score(self, rollouts):
        return torch.tensor([float(len(text) % 2 == 0) for text in rollouts.texts])


def test_supervised_training_has_no_samples(tmp_path):
    fit(tmp_path, sft(), SampleTable(every_n_steps=1))
    assert not (tmp_path / "samples.jsonl").exists()


def test_samples_go_to_wandb_as_a_table(tmp_path):
    logger = WandbLogger(project="lit-rl", save_dir=tmp_path, offline=True)
    fit(tmp_path, grpo(kl_coef=0.1), SampleTable(rows=2), logger=logger, max_steps=1)
    logger.experiment.finish()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:4] == ["step", "prompt", "completion", "reference"]
    assert len(content["data"]) == 2


# --- Improvement -----------------------------------------------------------------------------------------------------

WHOLE = {"num_sanity_val_steps": -1, "limit_val_batches": 1.0, "val_check_interval": 2}


def test_the_report_compares_the_baseline_with_the_end(tmp_path):
    callback = Improvement()
    trainer = fit(tmp_path, sft(), callback, **WHOLE, max_steps=4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["monitor"] == "val/accuracy"
    assert report["before"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.194, abs=1e-3), "step": 0}  # 0 of 16
    assert report["after"]["value"] == float(trainer.callback_metrics["val/accuracy"])
    assert report["improvement"] == report["after"]["value"] - report["before"]["value"]
    assert (report["after"]["step"], report["steps"]) == (4, 4)
    assert isinstance(report["seconds"], float)


def test_improvement_refuses_a_baseline_on_a_part(tmp_path):
    with pytest.raises(ValueError, match=r"set trainer\.num_sanity_val_steps to -1"):
        fit(tmp_path, sft(), Improvement(), **{**WHOLE, "num_sanity_val_steps": 2})


def test_a_misspelt_monitor_is_refused_at_the_baseline(tmp_path):
    with pytest.raises(ValueError, match=r"no metric 'val/acuracy'; write one of val/accuracy, .*val/loss"):
        fit(tmp_path, sft(), Improvement("val/acuracy"), **WHOLE)


def test_a_new_run_begins_by_removing_the_report_of_an_earlier_one(tmp_path):
    report = tmp_path / "report.json"
    report.write_text("{}")
    with pytest.raises(ValueError, match="no metric"):  # it ends before it could write its own
        fit(tmp_path, sft(), Improvement("val/acuracy"), **WHOLE)
    assert not report.exists()


def test_a_resumed_run_keeps_its_report_until_it_has_a_better_one(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    fit(tmp_path, sft(), Improvement(), saved, enable_checkpointing=True, **WHOLE)
    before = (tmp_path / "report.json").read_text()

    class Check(Callback):
        def on_train_batch_start(self, *_):
            assert (tmp_path / "report.json").read_text() == before

    fit(tmp_path, sft(), Improvement(), Check(), ckpt_path=tmp_path / "last.ckpt", **WHOLE, max_steps=4)
    assert (tmp_path / "report.json").read_text() != before


def test_the_baseline_survives_a_resume(tmp_path):
    first = Improvement()
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    fit(tmp_path, sft(), first, saved, enable_checkpointing=True, **WHOLE)
    second = Improvement()
    fit(tmp_path, sft(), second, ckpt_path=tmp_path / "last.ckpt", **WHOLE, max_steps=4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["before"] == first.before
    assert (report["before"]["step"], report["after"]["step"]) == (0, 4)


# --- Curriculum ------------------------------------------------------------------------------------------------------

LEVELS = [Grammar(max_digits=1, signed=False), Grammar(max_digits=2, signed=False)]


class Scripted(Reward):
    """The given rewards, one a rollout, for all completions alike."""

    asks_policy = True  # so that none is spent before the first step

    def __init__(self, values):
        self.values = iter(values)

    def score(self, rollouts):
        return torch.full(rollouts.lengths.shape, next(self.values))


class Watch(RolloutCallback):
    """The longest number in each rollout's prompts."""

    def __init__(self):
        self.digits = []

    def on_rollout_start(self, trainer, module, prompts):
        expressions = [sample.prompt.removeprefix("<bos><big>").removesuffix("<answer>") for sample in prompts.samples]
        numbers = [number for text in expressions for number in text.replace("+", " ").replace("-", " ").split()]
        self.digits.append(max(map(len, numbers)))
        return prompts


def learn(folder, rewards, callback, ckpt_path=None, **options):
    """Epochs of two rollouts with scripted rewards; returns the longest number of each rollout."""
    watch = Watch()
    data = tiny_data(levels=LEVELS, epoch_size=16)
    module = grpo(reward=Scripted(rewards))
    fit(folder, module, callback, watch, data=data, ckpt_path=ckpt_path, max_steps=len(rewards), **options)
    return watch.digits


def test_the_level_rises_behind_an_epoch_that_passes_the_threshold(tmp_path):
    callback = Curriculum(threshold=0.5)
    assert learn(tmp_path, [0.2, 0.7, 1.0, 0.1, 0.0, 0.0], callback) == [1, 1, 1, 1, 2, 2]  # means 0.45, 0.55


def test_the_level_stays_below_the_threshold(tmp_path):
    callback = Curriculum(threshold=0.5)
    learn(tmp_path, [0.2, 0.7, 0.9, 0.0], callback)
    assert callback.level == 0


def test_the_level_stops_at_the_last(tmp_path):
    callback = Curriculum(threshold=0.5)
    learn(tmp_path, [1.0] * 8, callback)
    assert callback.level == 2  # two easier levels and the grammar itself


def test_the_level_is_in_the_checkpoint(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    callback = Curriculum(threshold=0.5)
    fit_options = {"enable_checkpointing": True}
    module = grpo(reward=Scripted([1.0, 1.0, 0.0]))
    data = tiny_data(levels=LEVELS, epoch_size=16)
    fit(tmp_path, module, callback, saved, data=data, max_steps=3, **fit_options)
    later = Curriculum(threshold=0.5)
    watch = Watch()
    data = tiny_data(levels=LEVELS, epoch_size=16)
    fit(tmp_path, grpo(reward=Scripted([1.0])), later, watch, data=data, ckpt_path=tmp_path / "last.ckpt", max_steps=4)
    assert (callback.level, later.level) == (1, 1)
    assert watch.digits == [2]


class Fixed(PromptDataModule):
    """The same sum again and again."""

    def setup(self, stage):
        self.train_set = self.val_set = self.test_set = [Sample("<bos><big>1+1<answer>", "2", "2", n) for n in range(16)]


def test_curriculum_needs_levels(tmp_path):
    with pytest.raises(ValueError, match="Curriculum needs data with levels, such as Arithmetic; Fixed has none"):
        fit(tmp_path, grpo(), Curriculum(), data=Fixed(batch_size=8))


# --- a callback of the user's own ------------------------------------------------------------------------------------


def test_a_callback_may_change_prompts_and_rewards(tmp_path):
    class Halve(RolloutCallback):
        """The first half of the prompts twice, and a bonus for all."""

        def on_rollout_start(self, trainer, module, prompts):
            half = list(range(len(prompts) // 2))
            return prompts.select(half + half)

        def on_rollout_end(self, trainer, module, rollouts):
            rollouts.rewards = rollouts.rewards + 5
            return rollouts

    trainer = fit(tmp_path, grpo(), Halve(), SampleTable(rows=16), max_steps=1)
    assert float(trainer.callback_metrics["reward"]) == pytest.approx(5.0, abs=1.0)
    entries = samples_of(tmp_path)
    assert all(entry["reward"] == entry["rewards/correct"] + 5 for entry in entries)


class Keep(RolloutCallback):
    """The first prompts only, before or behind the sampling."""

    def __init__(self, count, when):
        self.count, self.when = count, when

    def on_rollout_start(self, trainer, module, prompts):
        return prompts.select(list(range(self.count))) if self.when == "start" else prompts

    def on_rollout_end(self, trainer, module, rollouts):
        return rollouts.select(list(range(self.count))) if self.when == "end" else rollouts


@pytest.mark.parametrize("when", ["start", "end"])
def test_a_callback_may_drop_prompts(tmp_path, when):
    trainer = fit(tmp_path, grpo(kl_coef=0.1), Keep(6, when), SampleTable(every_n_steps=1, rows=99), max_steps=2)
    assert trainer.global_step == 2
    prompts = {0: set(), 1: set()}
    for entry in samples_of(tmp_path):
        prompts[entry["step"]].add(entry["prompt"])
    assert max(len(texts) for texts in prompts.values()) <= 6  # of a batch of 8


def test_a_callback_that_leaves_a_number_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="5 groups"):
        fit(tmp_path, grpo(minibatches=2, kl_coef=0.1), Keep(5, "end"))


def test_callbacks_speak_in_the_order_of_the_list(tmp_path):
    class Times(RolloutCallback):
        def on_rollout_end(self, trainer, module, rollouts):
            rollouts.rewards = rollouts.rewards * 3
            return rollouts

    class Plus(RolloutCallback):
        def on_rollout_end(self, trainer, module, rollouts):
            rollouts.rewards = rollouts.rewards + 1
            return rollouts

    trainer = fit(tmp_path, grpo(reward=Scripted([2.0])), Times(), Plus(), max_steps=1)
    assert float(trainer.callback_metrics["reward"]) == 7.0  # 2 * 3 + 1
