"""Schedules of the learning rate, by the names of transformers."""

import pytest
import torch

from lit_rl.training import Schedule


def rates(schedule: Schedule, max_steps: int, steps: int) -> list[float]:
    """Learning rate of each step, of 1.0 at most."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = schedule.build(optimizer, max_steps), []
    for _ in range(steps):
        found += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "max_steps", "expected"),
    [
        (Schedule(), -1, [1.0, 1.0, 1.0]),
        (Schedule(warmup_steps=2), -1, [0.0, 0.5, 1.0, 1.0]),
        (Schedule("linear", warmup_steps=2), 4, [0.0, 0.5, 1.0, 0.5, 0.0]),
        (Schedule("cosine_with_min_lr", options={"min_lr_rate": 0.1}), 2, [1.0, 0.55, 0.1]),
    ],
)
def test_rates_are_counted_in_optimizer_steps(schedule, max_steps, expected):
    assert rates(schedule, max_steps, len(expected)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "max_steps", "message"),
    [
        (Schedule("zigzag"), 4, r"^model\.schedule: .*zigzag"),
        (Schedule("cosine"), -1, r"^model\.schedule 'cosine' needs the run's length; give trainer\.max_steps or max_epochs\.$"),
        (Schedule("cosine_with_min_lr", options={"least": 0.1}), 4, r"^model\.schedule: .*least"),
    ],
)
def test_schedules_that_cannot_be_built_are_refused(schedule, max_steps, message):
    with pytest.raises(ValueError, match=message):
        rates(schedule, max_steps, 0)
