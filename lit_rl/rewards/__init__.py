"""Rewards: subclasses of `Reward`, used by name in YAML and on the command line."""

from lit_rl.rewards.answers import ArithmeticAnswer, ArithmeticFormat
from lit_rl.rewards.base import AnswerReward, Reward, WeightedSum
from lit_rl.rewards.coherence import RegimeW
from lit_rl.rewards.dense import DensePrefixMatch
from lit_rl.rewards.final_answer import FinalNumber, MathAnswer
from lit_rl.rewards.guarded import Guarded
from lit_rl.rewards.information_gain import InformationGain
from lit_rl.rewards.majority_vote import MajorityVote
from lit_rl.rewards.prefix_match import AnswerFormat, PrefixMatch
from lit_rl.rewards.rpn import RPNAnswer, RPNFormat, RPNProgress, RPNReward

__all__ = [
    "AnswerFormat",
    "AnswerReward",
    "ArithmeticAnswer",
    "ArithmeticFormat",
    "DensePrefixMatch",
    "FinalNumber",
    "Guarded",
    "InformationGain",
    "MajorityVote",
    "MathAnswer",
    "PrefixMatch",
    "RPNAnswer",
    "RPNFormat",
    "RPNProgress",
    "RPNReward",
    "RegimeW",
    "Reward",
    "WeightedSum",
]
