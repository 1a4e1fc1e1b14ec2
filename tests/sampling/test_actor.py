"""Actor: completions of prompts with their texts, by the run's seed and in the run's precision."""

from contextlib import contextmanager

import pytest
import torch
from conftest import tiny_spec
from tiny_rollouts import prompts_of

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Actor, Renderer, Sampler
from lit_rl.sampling.sampler import SampleKey

SAMPLER = Sampler(max_new_tokens=6)


class HandMadeRuntime:
    """Stands in for a Runtime: records whether a forward context is open."""

    device = torch.device("cpu")

    def __init__(self):
        self.inside, self.entered = False, 0

    @contextmanager
    def forward_context(self):
        self.inside, self.entered = True, self.entered + 1
        try:
            yield
        finally:
            self.inside = False


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A policy; not to be changed."""
    torch.manual_seed(0)
    spec = tiny_spec(config={"initializer_range": 0.3})
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    return policy


def actor_of(policy: Policy, seed: int = 3) -> Actor:
    return Actor(policy, Renderer(load_tokenizer(policy.spec)), seed, HandMadeRuntime())


def prompts():
    return prompts_of([4, 5, 6], [7])


def test_completions_are_the_samplers_by_seed_rollout_and_round(policy):
    rollouts = actor_of(policy).generate(SAMPLER, prompts(), 2, rollout=5, round=1)
    expected = SAMPLER.sample(policy, prompts(), 2, SampleKey(3, 5, 1))
    assert torch.equal(rollouts.completion_ids, expected.completion_ids)
    assert torch.equal(rollouts.logprobs, expected.logprobs)
    assert rollouts.prompt.tolist() == [0, 0, 1, 1]


def test_another_seed_rollout_or_round_gives_other_completions(policy):
    first = actor_of(policy).generate(SAMPLER, prompts(), 4, rollout=5).texts
    assert actor_of(policy).generate(SAMPLER, prompts(), 4, rollout=5).texts == first
    others = {
        "seed": actor_of(policy, seed=4).generate(SAMPLER, prompts(), 4, rollout=5),
        "rollout": actor_of(policy).generate(SAMPLER, prompts(), 4, rollout=6),
        "round": actor_of(policy).generate(SAMPLER, prompts(), 4, rollout=5, round=1),
    }
    for name, rollouts in others.items():
        assert rollouts.texts != first, name


def test_completions_come_with_the_texts_of_the_renderer(policy):
    actor = actor_of(policy)
    rollouts = actor.generate(SAMPLER, prompts(), 4, rollout=0)
    assert rollouts.texts == actor.renderer.tokenizer.batch_decode(rollouts.completions(), clean_up_tokenization_spaces=False)
    assert len(set(rollouts.texts)) > 1


def test_forwards_and_nothing_else_run_in_the_precision_of_the_run(policy, monkeypatch):
    actor, inside = actor_of(policy), []
    for owner, name in ((policy, "prefill"), (policy, "decode_step"), (actor.renderer, "decode")):
        method = getattr(owner, name)

        def watched(*args, name=name, method=method):
            inside.append((name, actor.runtime.inside))
            return method(*args)

        monkeypatch.setattr(owner, name, watched)
    actor.generate(SAMPLER, prompts(), 2, rollout=0)
    assert set(inside) == {("prefill", True), ("decode_step", True), ("decode", False)}
    assert actor.runtime.entered == 1


def test_the_mode_of_the_policy_is_left_as_it_was(policy):
    assert policy.training
    actor_of(policy).generate(SAMPLER, prompts(), 2, rollout=0)
    assert policy.training
