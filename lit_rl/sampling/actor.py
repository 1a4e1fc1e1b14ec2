"""Actor: a policy that answers prompts, with all that answering takes."""

from __future__ import annotations

from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.sampling.renderer import Renderer
from lit_rl.sampling.sampler import SampleKey, Sampler
from lit_rl.types import PromptBatch


class Actor:
    """Policy, renderer, seed and runtime in one hand; rewards that ask the policy and evaluation get it.

    Args:
        policy: the policy.
        renderer: text in and out of it.
        seed: seeds all sampling.
        runtime: device, precision and ranks of the run.
    """

    def __init__(self, policy: Policy, renderer: Renderer, seed: int, runtime: Runtime) -> None:
        self.policy, self.renderer, self.seed, self.runtime = policy, renderer, seed, runtime

    def generate(self, sampler: Sampler, prompts: PromptBatch, group_size: int, rollout: int, round: int = 0) -> Rollouts:
        """Completions of rendered prompts, with their texts.

        Args:
            sampler: draws the completions.
            prompts: rendered prompts.
            group_size: completions per prompt.
            rollout: number of the rollout, which sampling is keyed by.
            round: counts the draws of one rollout, so that a prompt drawn again gets other completions.
        """
        with self.runtime.forward_context():
            rollouts = sampler.sample(self.policy, prompts, group_size, SampleKey(self.seed, rollout, round))
        rollouts.texts = self.renderer.decode(rollouts)
        return rollouts
