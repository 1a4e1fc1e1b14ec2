"""Ideas about filtering, sampling and looking at a run: Lightning callbacks, used by name in YAML and on the command line."""

from .curriculum import Curriculum
from .hf_export import HFExport
from .improvement import Improvement
from .kl_controller import KLController
from .sample_table import SampleTable
from .shuffled_rewards import ShuffledRewards

__all__ = ["Curriculum", "HFExport", "Improvement", "KLController", "SampleTable", "ShuffledRewards"]
