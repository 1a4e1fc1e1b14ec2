"""Actor: a policy that answers prompts, with all that answering takes."""

from __future__ import annotations

from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.runtime import Runtime
from lit_rl.sampling.renderer import Renderer
from lit_rl.sampling.sampler import SampleKey, Sampler
from lit_rl.types import PromptBatch


class Actor:
    """Policy, renderer, seed and runtime in one hand; evaluation and rewards that ask the policy get it.

    Args:
        policy: the policy.
        renderer: turns texts into prompts, and completions into texts.
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
            rollout: number of the rollout; keys the draws.
            round: number of draws of this rollout so far, so that a prompt drawn again gets other completions.
        """
        with self.runtime.forward_context():
            rollouts = sampler.sample(self.policy, prompts, group_size, SampleKey(self.seed, rollout, round))
        rollouts.texts = self.renderer.decode(rollouts)
        if stops := self.policy.stop_strings:
            rows = zip(rollouts.texts, rollouts.stopped.tolist(), strict=True)
            rollouts.texts = [stops.cut(text) if stopped else text for text, stopped in rows]
        return rollouts
