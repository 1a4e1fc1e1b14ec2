"""Ideas about filtering, sampling and looking at a run: Lightning callbacks, used by name in YAML and on the command line."""

from .curriculum import Curriculum
from .dynamic_sampling import DynamicSampling
from .entropy_filter import EntropyFilter
from .hf_export import HFExport
from .improvement import Improvement
from .kl_controller import KLController
from .sample_table import SampleTable
from .shuffled_rewards import ShuffledRewards
from .temperature import AdaptiveTemperature

__all__ = [
    "AdaptiveTemperature",
    "Curriculum",
    "DynamicSampling",
    "EntropyFilter",
    "HFExport",
    "Improvement",
    "KLController",
    "SampleTable",
    "ShuffledRewards",
]
