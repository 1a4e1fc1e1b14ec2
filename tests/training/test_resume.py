"""A run that is stopped and resumed is the run that was never stopped: to the last bit."""

import pytest
import torch
from conftest import tiny_data
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from resumed_runs import assert_same_end, grpo, ppo, rpt, run, sft

from lit_rl.callbacks import DynamicSampling, EntropyFilter, TemperatureSchedule
from lit_rl.datamodules import PositionSpec
from lit_rl.sampling import Sampler

RUNS = {"sft": (sft, 2, 32), "grpo": (grpo, 1, 16), "grpo accumulating": (grpo, 2, 16), "ppo": (ppo, 2, 16)}
"""Algorithm, micro-batches of an optimizer step, prompts of an epoch. SFT takes a step per 8 prompts, GRPO and PPO four."""


class Whole:
    """A run that is never stopped, with a checkpoint after each step (``step=5.ckpt``) and each epoch (``epoch=0.ckpt``)."""

    def __init__(self, name, folder):
        self.folder = folder
        self.build, self.accumulate, self.epoch_size = RUNS[name]
        steps = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_on_train_epoch_end=False, save_top_k=-1)
        epochs = ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_on_train_epoch_end=True, save_top_k=-1)
        self.end = self.again(callbacks=[steps, epochs])

    def again(self, **options):
        """The same run with other options."""
        return run(self.build, self.folder, self.epoch_size, accumulate_grad_batches=self.accumulate, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = {}

    def get(name):
        if name not in runs:
            runs[name] = Whole(name, tmp_path_factory.mktemp("whole"))
        return runs[name]

    return get


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param("sft", 4, id="sft at an epoch's last step"),
        pytest.param("sft", 5, id="sft in an epoch"),
        pytest.param("grpo", 4, id="grpo between rollouts"),
        pytest.param("grpo", 5, id="grpo in a rollout"),
        pytest.param("grpo", 8, id="grpo at an epoch's last step"),
        pytest.param("grpo", 9, id="grpo in a rollout of the second epoch"),
        pytest.param("grpo accumulating", 5, id="grpo in a rollout, accumulating"),
        pytest.param("ppo", 1, id="ppo while the critic warms up"),
        pytest.param("ppo", 6, id="ppo after a rollout that ended early"),
        pytest.param("ppo", 7, id="ppo in a rollout"),
        pytest.param("ppo", 8, id="ppo at an epoch's last step"),
    ],
)
def test_stop_and_resume_changes_no_bit(whole, name, step):
    resumed = whole(name).again(ckpt_path=whole(name).folder / f"step={step}.ckpt")
    assert_same_end(whole(name).end, resumed, step)


@pytest.mark.parametrize(("name", "step"), [("sft", 4), ("grpo", 8)])
def test_resume_from_an_epoch_end_checkpoint_changes_no_bit(whole, name, step):
    resumed = whole(name).again(ckpt_path=whole(name).folder / "epoch=0.ckpt")
    assert_same_end(whole(name).end, resumed, step)


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo"])
def test_a_second_run_that_validates_more_often_is_the_same_to_the_last_bit(whole, name):
    interval = 4 * whole(name).accumulate
    often = {"limit_val_batches": 1.0, "num_sanity_val_steps": -1, "check_val_every_n_epoch": None}
    assert_same_end(whole(name).end, whole(name).again(val_check_interval=interval, **often), 0)


def test_resuming_with_another_number_of_processes_is_refused(whole, tmp_path):
    checkpoint = torch.load(whole("grpo").folder / "step=4.ckpt", weights_only=True)
    checkpoint["stream"] = checkpoint["stream"] * 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match=r"2 process\(es\) and this run has 1"):
        whole("grpo").again(ckpt_path=tmp_path / "two.ckpt")


def test_a_checkpoint_of_another_model_is_refused(whole):
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        whole("grpo").again(ckpt_path=whole("sft").folder / "step=4.ckpt")


def test_a_checkpoint_inside_an_accumulation_window_is_refused(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 2:  # the third micro-batch of two a step
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    run(sft, tmp_path, 64, [Save()], accumulate_grad_batches=2, max_steps=2)
    with pytest.raises(ValueError, match="inside an accumulation window"):
        run(sft, tmp_path, 64, ckpt_path=tmp_path / "inside.ckpt", accumulate_grad_batches=2)


def test_a_run_that_breaks_off_while_sampling_skips_no_prompts(whole, tmp_path):
    """Its checkpoint is from before the broken rollout began."""

    class Breaks(Sampler):
        def sample(self, policy, prompts, group_size, key):
            if key.rollout == 1:
                raise KeyboardInterrupt
            return super().sample(policy, prompts, group_size, key)

    class Save(Callback):
        def on_exception(self, trainer, module, exception):
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    def build():
        module = grpo()
        module.sampler = Breaks(max_new_tokens=4)
        return module

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(build, tmp_path, whole("grpo").epoch_size, [Save()])
    resumed = whole("grpo").again(ckpt_path=tmp_path / "broken.ckpt")
    assert_same_end(whole("grpo").end, resumed, 4)


def test_rpt_stops_and_resumes_with_its_filter_and_its_sampling(tmp_path):
    """Inside a rollout whose groups were partly refilled, on positions that an entropy filter chose."""

    def start(*savers, **options):
        filters = [EntropyFilter(quantile=0.5, cache_folder=str(tmp_path)), DynamicSampling(), TemperatureSchedule()]
        data = tiny_data(epoch_size=64, positions=PositionSpec(labels_length=2, eval_positions=8))
        return run(rpt, tmp_path, 64, [*filters, *savers], data=data, **options)

    whole = start(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1))
    resumed = start(ckpt_path=tmp_path / "step=5.ckpt")
    assert max(metrics["sampling/rounds"] for metrics in whole[3].values()) > 0
    assert_same_end(whole, resumed, 5)
