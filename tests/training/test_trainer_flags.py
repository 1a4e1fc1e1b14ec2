"""Flags of the Trainer keep their meaning on training streams, or are refused in one line."""

import functools
import os
import signal

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.cli.lightning_cli import one_line_errors
from lit_rl.evaluation import Evaluation
from lit_rl.sampling import Sampler
from lit_rl.training import Schedule

ADAM = functools.partial(torch.optim.AdamW, lr=1e-3)
SHORT = Evaluation(max_new_tokens=4)
SAMPLED = {"group_size": 2, "sampler": Sampler(max_new_tokens=4)}


class Seen(Callback):
    """Prompts and metrics of each micro-batch."""

    def __init__(self):
        self.prompts, self.metrics, self.texts = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        rows = batch.rows
        self.prompts.append(rows.ids.tolist() if hasattr(rows, "ids") else rows.prompts.numbers)
        self.texts.append([] if hasattr(rows, "ids") else rows.texts)
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def seen(folder, module, data=None, ckpt_path=None, callbacks=(), **options):
    watch = Seen()
    trainer = quiet_trainer(folder, callbacks=[watch, *callbacks], **options)
    trainer.fit(module, data or tiny_data(), ckpt_path=ckpt_path)
    return watch


def sft(**options):
    return SFT(tiny_spec(), **{"optimizer": ADAM, "evaluation": SHORT, **options})


def grpo(**options):
    return GRPO(tiny_spec(), **{"optimizer": ADAM, "evaluation": SHORT, "entropy_coef": 0.01, **SAMPLED, **options})


@pytest.mark.parametrize("algorithm", [sft, grpo])
def test_loaders_that_are_made_anew_go_on_in_the_data(tmp_path, algorithm):
    data = {"epoch_size": 16, "batch_size": 8}
    plain = seen(tmp_path, algorithm(), tiny_data(**data), max_epochs=3)
    anew = seen(tmp_path, algorithm(), tiny_data(**data), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert anew.prompts == plain.prompts
    assert anew.texts == plain.texts
    assert len({str(prompts) for prompts in plain.prompts}) == 6


def test_an_overfitted_batch_is_the_same_in_every_epoch(tmp_path):
    watch = seen(tmp_path, grpo(), max_epochs=3, overfit_batches=1)
    assert watch.prompts[0] == watch.prompts[1] == watch.prompts[2]
    assert watch.texts[0] != watch.texts[1]


def test_a_share_of_a_batch_cannot_be_overfitted(tmp_path):
    with pytest.raises(ValueError, match=r"^trainer\.overfit_batches comes to 1 micro-batches, but .* becomes 2"):
        seen(tmp_path, sft(), max_epochs=2, overfit_batches=1, accumulate_grad_batches=2)


def test_a_schedule_ends_with_the_epochs(tmp_path):
    """16 samples in batches of 8, three epochs: six steps, the rate of each a sixth less."""
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}
    watch = seen(tmp_path, sft(schedule=Schedule("linear")), tiny_data(epoch_size=16, batch_size=8), **options)
    rates = [metrics["lr"] for metrics in watch.metrics[1::2]]
    assert rates == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    options = {"max_epochs": 2, "limit_train_batches": 0.5}
    watch = seen(tmp_path, sft(schedule=Schedule("linear")), tiny_data(epoch_size=16, batch_size=8), **options)
    assert [metrics["lr"] for metrics in watch.metrics] == pytest.approx([1e-3, 0.5e-3])


def test_rates_samples_and_tokens_are_logged(tmp_path):
    class Saver(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "run.ckpt")

    def ppo():
        return PPO(tiny_spec(), optimizer=ADAM, critic_lr=1e-2, evaluation=SHORT, epochs=2, minibatches=1, **SAMPLED)

    class Tokens(Callback):
        total = 0

        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step % 2:
                rollouts = module.experience.rollouts
                Tokens.total += int(rollouts.lengths.sum() + rollouts.prompts.mask.sum())

    whole = seen(tmp_path, ppo(), max_steps=6, callbacks=[Saver(), Tokens()]).metrics
    assert whole[0]["lr"] == pytest.approx(1e-3)
    assert whole[0]["lr/critic"] == pytest.approx(1e-2)
    # Two passes over a batch of 8 prompts: it counts once.
    assert [metrics["samples_seen"] for metrics in whole] == [8, 8, 16, 16, 24, 24]
    assert whole[-1]["tokens_seen"] == Tokens.total
    resumed = seen(tmp_path, ppo(), max_steps=6, ckpt_path=tmp_path / "run.ckpt").metrics
    for name in ("samples_seen", "tokens_seen", "lr", "lr/critic", "skipped_steps"):
        assert [metrics[name] for metrics in resumed] == [metrics[name] for metrics in whole[3:]], name


def test_supervised_tokens_are_logged(tmp_path):
    watch = seen(tmp_path, sft(), max_steps=2, accumulate_grad_batches=2)
    metrics = watch.metrics[-1]
    assert metrics["samples_seen"] == 16
    assert 16 * 4 < metrics["tokens_seen"] <= 16 * 16
    assert metrics["lr"] == pytest.approx(1e-3)


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_a_metric_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"^model\.schedule '{name}' follows a metric"):
        seen(tmp_path, sft(schedule=Schedule(name)), max_steps=1)


def test_a_rate_of_nothing_and_an_optimizer_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^model\.optimizer: "):
        seen(tmp_path, sft(optimizer=functools.partial(torch.optim.AdamW, lr=None)), max_steps=1)
    with pytest.raises(ValueError, match=r"^model\.optimizer made a list; name a subclass of torch\.optim\.Optimizer\.$"):
        seen(tmp_path, sft(optimizer=list), max_steps=1)
    config = tiny_config(tmp_path)
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": None}}
    assert "optimizer" in refusal("fit", "--config", write_yaml(tmp_path / "config.yaml", config))


def test_loaders_without_a_data_module_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"write trainer\.fit\(module, datamodule=\.\.\.\)"):
        quiet_trainer(tmp_path, max_steps=1).fit(sft(), train_dataloaders=[1, 2])


def test_a_module_does_not_come_from_a_checkpoint_alone():
    with pytest.raises(ValueError, match=r"AutoModelForCausalLM\.from_pretrained, or build the module"):
        SFT.load_from_checkpoint("run.ckpt")


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_is_killed_is_one_line():
    with (
        pytest.raises(ValueError, match=r"^a process that reads data has died \(DataLoader worker.*lower data\.num_workers\.$"),
        one_line_errors(),
    ):
        list(torch.utils.data.DataLoader(Deadly(), num_workers=1))
