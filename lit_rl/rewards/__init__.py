"""Rewards: subclasses of `Reward`, used by name in YAML and on the command line."""

from lit_rl.rewards.answers import Correct, Format
from lit_rl.rewards.base import Reward, WeightedSum
from lit_rl.rewards.dense import DensePrefixMatch
from lit_rl.rewards.final_answer import BoxedMath, FinalNumber
from lit_rl.rewards.information_gain import InformationGain
from lit_rl.rewards.prefix import AnswerFormat, PrefixMatch
from lit_rl.rewards.rpn import Boxed, CombinedReward, CorrectAnswer, PartialCredit

__all__ = [
    "AnswerFormat",
    "Boxed",
    "BoxedMath",
    "CombinedReward",
    "Correct",
    "CorrectAnswer",
    "DensePrefixMatch",
    "FinalNumber",
    "Format",
    "InformationGain",
    "PartialCredit",
    "PrefixMatch",
    "Reward",
    "WeightedSum",
]
