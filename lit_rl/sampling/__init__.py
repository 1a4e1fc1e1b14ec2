"""From prompts to rollouts."""

from lit_rl.sampling.actor import Actor
from lit_rl.sampling.arms import Arm, ArmSampler
from lit_rl.sampling.renderer import Renderer
from lit_rl.sampling.sampler import Sampler

__all__ = ["Actor", "Arm", "ArmSampler", "Renderer", "Sampler"]
