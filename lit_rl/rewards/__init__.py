"""Rewards: subclasses of `Reward`, used by name in YAML and on the command line."""

from lit_rl.rewards.answers import Correct, Format
from lit_rl.rewards.base import Reward, WeightedSum
from lit_rl.rewards.dense import DensePrefixMatch
from lit_rl.rewards.final_answer import BoxedMath, FinalNumber
from lit_rl.rewards.information_gain import InformationGain
from lit_rl.rewards.prefix import AnswerFormat, PrefixMatch

__all__ = [
    "AnswerFormat",
    "BoxedMath",
    "Correct",
    "DensePrefixMatch",
    "FinalNumber",
    "Format",
    "InformationGain",
    "PrefixMatch",
    "Reward",
    "WeightedSum",
]
