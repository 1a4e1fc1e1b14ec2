"""Sources of text: LightningDataModules, used by name in YAML and on the command line."""

from .arithmetic import Arithmetic
from .base import EpochSampler, PromptDataModule

__all__ = ["Arithmetic", "EpochSampler", "PromptDataModule"]
