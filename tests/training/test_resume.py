"""A run that is stopped and resumed is the run that was never stopped: to the last bit."""

import pytest
import torch
from conftest import tiny_data
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from resumed_runs import Stopped, Stopper, assert_same_end, grpo, ppo, rpt, run, sft

from lit_rl.callbacks import DynamicSampling, EntropyFilter, TemperatureSchedule
from lit_rl.datamodules import PositionSpec
from lit_rl.sampling import Sampler

CASES = {
    "sft in an epoch": (sft, 5, 64),
    "sft at an epoch's last step": (sft, 4, 32),
    "grpo in a rollout": (grpo, 5, 64),
    "grpo between rollouts": (grpo, 8, 64),
    "grpo in a rollout of the second epoch": (grpo, 9, 16),
    "grpo at an epoch's last step": (grpo, 8, 16),
    "ppo while the critic warms up": (ppo, 1, 64),
    "ppo in a rollout": (ppo, 7, 64),
    "ppo behind a rollout that ended early": (ppo, 6, 64),
    "ppo at an epoch's last step": (ppo, 8, 16),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stop_and_resume_changes_no_bit(tmp_path, case, accumulate):
    build, stop, epoch_size = CASES[case]
    options = {"accumulate_grad_batches": accumulate}
    whole = run(build, tmp_path, epoch_size, **options)
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=stop, save_on_train_epoch_end=False)
    with pytest.raises(Stopped):
        run(build, tmp_path, epoch_size, [saver, Stopper(stop)], **options)
    resumed = run(build, tmp_path, epoch_size, ckpt_path=tmp_path / "at.ckpt", **options)
    assert_same_end(whole, resumed, stop)


@pytest.mark.parametrize(("build", "epoch_size", "step"), [(sft, 32, 4), (grpo, 16, 8)])
def test_resume_from_an_epoch_end_checkpoint_changes_no_bit(tmp_path, build, epoch_size, step):
    whole = run(build, tmp_path, epoch_size)
    saver = ModelCheckpoint(tmp_path, "end", every_n_epochs=1, save_on_train_epoch_end=True)
    with pytest.raises(Stopped):
        run(build, tmp_path, epoch_size, [saver, Stopper(step)])
    resumed = run(build, tmp_path, epoch_size, ckpt_path=tmp_path / "end.ckpt")
    assert_same_end(whole, resumed, step)


@pytest.mark.parametrize("build", [sft, grpo, ppo])
def test_same_seed_gives_the_same_run(tmp_path, build):
    assert_same_end(run(build, tmp_path, 64), run(build, tmp_path, 64), 0)


@pytest.mark.parametrize("build", [sft, grpo, ppo])
def test_validating_more_often_changes_no_bit_of_training(tmp_path, build):
    often = {"limit_val_batches": 1.0, "num_sanity_val_steps": -1, "val_check_interval": 4, "check_val_every_n_epoch": None}
    assert_same_end(run(build, tmp_path, 64), run(build, tmp_path, 64, **often), 0)


def test_resuming_with_another_number_of_processes_is_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=4)
    run(grpo, tmp_path, 64, [saver])
    path = tmp_path / "at.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["stream"] = checkpoint["stream"] * 2
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"2 process\(es\) and this run has 1"):
        run(grpo, tmp_path, 64, ckpt_path=path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(sft, tmp_path, 64, [ModelCheckpoint(tmp_path, "at", every_n_train_steps=4)])
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        run(grpo, tmp_path, 64, ckpt_path=tmp_path / "at.ckpt")


def test_a_checkpoint_inside_an_accumulation_window_is_refused(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 2:  # the third micro-batch of two a step
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    run(sft, tmp_path, 64, [Save()], accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="inside an accumulation window"):
        run(sft, tmp_path, 64, ckpt_path=tmp_path / "inside.ckpt", accumulate_grad_batches=2)


def test_a_run_that_breaks_off_while_sampling_skips_no_prompts(tmp_path):
    """Its checkpoint is from before the broken rollout began."""

    class Breaks(Sampler):
        def sample(self, policy, prompts, group_size, key):
            if key.rollout == 1 and self.max_new_tokens == 4 and not (tmp_path / "broken").exists():
                (tmp_path / "broken").write_text("")
                raise KeyboardInterrupt
            return super().sample(policy, prompts, group_size, key)

    class Seen(Callback):
        def __init__(self):
            self.numbers = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch.fresh:
                self.numbers.append(sorted(set(batch.rows.prompts.numbers)))

        def on_exception(self, trainer, module, exception):
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    def build():
        module = grpo()
        module.sampler = Breaks(max_new_tokens=4)
        return module

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(build, tmp_path, 64, [Seen()])
    resumed, whole = Seen(), Seen()
    run(build, tmp_path, 64, [resumed], ckpt_path=tmp_path / "broken.ckpt")
    run(build, tmp_path, 64, [whole])
    assert resumed.numbers == whole.numbers[1:]


def test_rpt_stops_and_resumes_with_its_filter_and_its_sampling(tmp_path):
    """Inside a rollout whose groups were partly refilled, on positions that an entropy filter chose."""

    def parts():
        filters = [EntropyFilter(quantile=0.5, cache_folder=str(tmp_path)), DynamicSampling(), TemperatureSchedule()]
        return filters, tiny_data(epoch_size=64, positions=PositionSpec(labels_length=2, eval_positions=8))

    filters, data = parts()
    whole = run(rpt, tmp_path, 64, filters, data=data)
    filters, data = parts()
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=5, save_on_train_epoch_end=False)
    with pytest.raises(Stopped):
        run(rpt, tmp_path, 64, [*filters, saver, Stopper(5)], data=data)
    filters, data = parts()
    resumed = run(rpt, tmp_path, 64, filters, ckpt_path=tmp_path / "at.ckpt", data=data)
    assert max(metrics["sampling/rounds"] for metrics in whole[3].values()) > 0
    assert_same_end(whole, resumed, 5)
