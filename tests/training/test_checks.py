"""Trainer options that cannot work are refused before the first step, with what to write instead."""

import math
from types import SimpleNamespace

import pytest
from conftest import quiet_trainer, tiny_spec
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lit_rl.algorithms import SFT
from lit_rl.datamodules import Arithmetic
from lit_rl.evaluation import Evaluation
from lit_rl.tasks.infix import Grammar
from lit_rl.training.checks import check_equal_work, check_intervals, check_trainer


def trainer(epoch: float = 8, interval: float = 4, validates: bool = True, fast_dev_run: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        overfit_batches=0,
        num_training_batches=epoch,
        val_check_batch=interval,
        enable_validation=validates,
        fast_dev_run=fast_dev_run,
    )


class HalfParallel(ModelParallelStrategy):
    """Lightning's own with its defaults on two processes: both share one half of the mesh."""

    device_mesh = {"data_parallel": SimpleNamespace(size=lambda: 1)}  # noqa: RUF012


def started(strategy, world_size=1, callbacks=()):
    return SimpleNamespace(strategy=strategy, world_size=world_size, callbacks=list(callbacks))


def test_strategies_that_would_not_train_one_model_on_all_data_are_refused():
    with pytest.raises(ValueError, match=r"^trainer\.strategy FSDPStrategy does not work .* write ddp, or fsdp2"):
        check_trainer(started(FSDPStrategy()))
    with pytest.raises(ValueError, match=r"data over 1 of 2 processes.*; write --trainer\.strategy fsdp2\.$"):
        check_trainer(started(HalfParallel(), 2))
    check_trainer(started(HalfParallel(), 1))
    for strategy in (SingleDeviceStrategy(), DDPStrategy()):
        check_trainer(started(strategy))


def test_processes_that_the_trainer_does_not_know_of_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^torchrun started 2 processes, .*; write --trainer\.devices"):
        check_trainer(started(SingleDeviceStrategy()))
    check_trainer(started(DDPStrategy(), 2))


@pytest.mark.parametrize(
    ("callback", "advice"),
    [
        (GradientAccumulationScheduler({4: 2}), "remove it and set trainer.accumulate_grad_batches."),
        (StochasticWeightAveraging(1e-3), "write EMAWeightAveraging"),
        (LearningRateFinder(), "write model.optimizer.lr"),
        (BatchSizeFinder(), "and data.batch_size."),
    ],
)
def test_callbacks_that_cannot_work_are_refused(callback, advice):
    with pytest.raises(ValueError, match=f"^{type(callback).__name__} .*{advice}"):
        check_trainer(started(SingleDeviceStrategy(), callbacks=[callback]))


def test_epochs_and_validations_between_batches_of_prompts_pass():
    for each in [
        trainer(),
        trainer(math.inf, 8),
        trainer(8, math.inf),
        trainer(8, 3, validates=False),
        trainer(1, 1, fast_dev_run=True),
    ]:
        check_intervals(each, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((6, 4), r"^trainer\.limit_train_batches comes to 6 micro-batches, .* becomes 4; .* for example 4 or 8\.$"),
        ((8, 3), r"^trainer\.val_check_interval comes to 3 micro-batches, .* becomes 4; .* for example 4 or 8\.$"),
        ((16, 10), r"^trainer\.val_check_interval comes to 10 micro-batches, .* becomes 4; .* for example 8 or 12\.$"),
    ],
)
def test_epochs_and_validations_inside_a_batch_of_prompts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_intervals(trainer(*options), 4)


def test_problems_that_ranks_cannot_share_equally_are_refused():
    check_equal_work(16, 2)
    with pytest.raises(ValueError, match=r"15 problems do not divide over 2 ranks\.$"):
        check_equal_work(15, 2)


class TwoLoaders(Arithmetic):
    def val_dataloader(self):
        return [super().val_dataloader(), super().val_dataloader()]


def test_several_loaders_of_one_evaluation_are_refused(tmp_path):
    sizes = {"grammar": Grammar(max_digits=1), "epoch_size": 16, "val_problems": 4, "test_problems": 4}
    with pytest.raises(ValueError, match=r"^2 loaders for one evaluation, .*; give one, and evaluate other problems by"):
        quiet_trainer(tmp_path, limit_val_batches=1).validate(
            SFT(tiny_spec(), evaluation=Evaluation(4)), TwoLoaders(**sizes), verbose=False
        )


def test_answers_that_do_not_fit_the_model_name_their_own_option(tmp_path):
    data = Arithmetic(grammar=Grammar(max_digits=1), val_problems=4, test_problems=4)
    with pytest.raises(ValueError, match=r"with 256 new ones \(model\.evaluation\.max_new_tokens\) more than"):
        quiet_trainer(tmp_path, limit_val_batches=1).validate(SFT(tiny_spec()), data, verbose=False)
