"""Rewards: subclasses of `Reward`, used by name in YAML and on the command line."""

from lit_rl.rewards.answers import Correct, Format
from lit_rl.rewards.base import Reward, WeightedSum
from lit_rl.rewards.prefix import AnswerFormat, PrefixMatch

__all__ = ["AnswerFormat", "Correct", "Format", "PrefixMatch", "Reward", "WeightedSum"]
