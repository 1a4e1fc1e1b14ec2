"""Trainer options that cannot work are refused before the first step, with what to write instead."""

import math
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import FSDPStrategy

from lit_rl.training.checks import check_equal_work, check_intervals, check_trainer


def trainer(epoch: float = 8, interval: float = 4, validates: bool = True, fast_dev_run: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        num_training_batches=epoch, val_check_batch=interval, enable_validation=validates, fast_dev_run=fast_dev_run
    )


def test_strategies_and_callbacks_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"write --trainer\.strategy fsdp2\.$"):
        check_trainer(SimpleNamespace(strategy=FSDPStrategy(), callbacks=[]))
    with pytest.raises(ValueError, match=r"remove it and set trainer\.accumulate_grad_batches\.$"):
        check_trainer(SimpleNamespace(strategy=None, callbacks=[GradientAccumulationScheduler({4: 2})]))
    check_trainer(SimpleNamespace(strategy=None, callbacks=[]))


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
