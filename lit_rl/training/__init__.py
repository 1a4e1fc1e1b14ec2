"""Training data as Lightning sees it: training streams, batch plans, schedules, strategies."""

from lit_rl.training.schedule import Schedule
from lit_rl.training.strategy import FSDP2Strategy

__all__ = ["FSDP2Strategy", "Schedule"]
