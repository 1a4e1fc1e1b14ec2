"""Mathematics of policy optimization: pure functions on tensors, and the options that choose among them."""

from lit_rl.objectives.objective import Correction, Objective
from lit_rl.objectives.overlong import Overlong

__all__ = ["Correction", "Objective", "Overlong"]
