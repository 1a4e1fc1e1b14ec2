"""One LightningModule per algorithm."""

from lit_rl.algorithms.grpo import GRPO
from lit_rl.algorithms.module import PolicyModule
from lit_rl.algorithms.policy_gradient import PolicyGradient
from lit_rl.algorithms.ppo import PPO
from lit_rl.algorithms.rpt import RPT
from lit_rl.algorithms.sft import SFT

__all__ = ["GRPO", "PPO", "RPT", "SFT", "PolicyGradient", "PolicyModule"]
