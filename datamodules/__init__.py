"""Sources of text: LightningDataModules, used by name in YAML and on the command line."""

from .arithmetic import Arithmetic
from .base import EpochSampler, PromptDataModule
from .corpus import Corpus
from .gsm8k import GSM8K
from .largest_number import LargestNumber
from .omni_math import OmniMath
from .positions import Positions, PositionSpec
from .reasoned_arithmetic import ReasonedArithmetic
from .recorded import Recorded
from .rpn import RPN
from .story_problems import StoryProblems

__all__ = [
    "GSM8K",
    "RPN",
    "Arithmetic",
    "Corpus",
    "EpochSampler",
    "LargestNumber",
    "OmniMath",
    "PositionSpec",
    "Positions",
    "PromptDataModule",
    "ReasonedArithmetic",
    "Recorded",
    "StoryProblems",
]
