"""Lightning callbacks for filtering, sampling and looking at a run, used by name in YAML and on the command line."""

from .adaptive_kl import AdaptiveKL
from .bandit import Bandit
from .curriculum import Curriculum
from .dynamic_sampling import DynamicSampling
from .entropy_filter import EntropyFilter
from .hf_export import HFExport
from .improvement import Improvement
from .progress import Progress
from .rollout_writer import RolloutWriter
from .sample_table import SampleTable
from .shuffled_rewards import ShuffledRewards
from .temperature_schedule import TemperatureSchedule

__all__ = [
    "AdaptiveKL",
    "Bandit",
    "Curriculum",
    "DynamicSampling",
    "EntropyFilter",
    "HFExport",
    "Improvement",
    "Progress",
    "RolloutWriter",
    "SampleTable",
    "ShuffledRewards",
    "TemperatureSchedule",
]
