"""Collector alone: what is called in which order, and what keys the sampling, on an actor that answers from a list."""

from types import SimpleNamespace

import torch
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.objectives import Overlong
from lit_rl.rewards import Reward
from lit_rl.training.collector import Collector

PROMPTS = prompts_of([1], [2, 3])


class Length(Reward):
    """Pays the length of a completion."""

    def __init__(self, calls):
        self.calls = calls

    def prepare(self, actor, rollouts):
        self.calls.append("prepare")

    def score(self, rollouts):
        self.calls.append("score")
        return rollouts.lengths.float()


class FakeActor:
    """Answers each prompt with rows of 1 and 2 tokens, the second one truncated, and notes each call."""

    def __init__(self):
        self.calls, self.runtime, self.renderer = [], self, self  # its own runtime and renderer
        self.device, self.ranks = torch.device("cpu"), 1
        self.at_the_end = lambda rollouts: rollouts

    @property
    def keys(self):
        """Keys of all sampling."""
        return [call.split(": ")[1] for call in self.calls if call.startswith("generate")]

    def render(self, prompts):
        self.calls.append("render")
        return prompts

    def on_rollout_start(self, prompts):
        self.calls.append("on_rollout_start")
        return prompts.select([1, 0])

    def generate(self, sampler, prompts, group_size, rollout, round):
        self.calls.append(f"generate {group_size} of {prompts.numbers}: rollout {rollout}, round {round}")
        truncated = torch.tensor([False, True]).repeat(len(prompts))
        return rollouts_of(prompts, group_size, [[5], [6, 7]] * len(prompts), truncated=truncated)

    def on_rollout_end(self, rollouts):
        self.calls.append("on_rollout_end")
        return self.at_the_end(rollouts)


def collector_of(actor: FakeActor, action: str = "keep") -> Collector:
    return Collector(actor, SimpleNamespace(max_new_tokens=2), Length(actor.calls), Overlong(action), 2)


def test_prompts_become_scored_completions():
    rollouts = collector_of(FakeActor(), "mask").collect(PROMPTS)
    assert rollouts.prompts.numbers == [101, 100], "as on_rollout_start left them"
    assert rollouts.rewards.tolist() == [1.0, 2.0] * 2
    assert rollouts.parts["length"].tolist() == [1.0, 2.0] * 2
    assert rollouts.in_loss.tolist() == [True, False] * 2


def test_hooks_are_called_around_sampling_and_scoring():
    actor = FakeActor()
    collector_of(actor).collect(PROMPTS)
    assert actor.calls == [
        "render",
        "on_rollout_start",
        "generate 2 of [101, 100]: rollout 0, round 0",
        "prepare",
        "score",
        "on_rollout_end",
    ]


def test_rollouts_are_keyed_by_their_number_and_returned_as_the_last_hook_left_them():
    actor = FakeActor()
    collector = collector_of(actor)
    actor.at_the_end = lambda rollouts: rollouts.select([1])
    for number in range(3):
        collector.number = number
        assert collector.collect(PROMPTS).prompts.numbers == [100]
    assert actor.keys == [f"rollout {n}, round 0" for n in range(3)]


def test_draws_of_the_last_hook_belong_to_the_rollout_by_their_round():
    actor = FakeActor()
    collector = collector_of(actor)

    def draw_twice(rollouts):
        first, second = (collector.draw(PROMPTS, round) for round in (1, 2))
        assert first.rewards.tolist() == second.rewards.tolist() == [1.0, 2.0] * 2
        return rollouts

    actor.at_the_end = draw_twice
    collector.collect(PROMPTS)
    assert actor.keys == [f"rollout 0, round {n}" for n in range(3)]
    assert actor.calls.count("on_rollout_start") == actor.calls.count("score") == 3
    assert actor.calls.count("on_rollout_end") == 1


def test_times_are_those_of_the_first_draw():
    collector = collector_of(FakeActor())
    collector.draw(PROMPTS, 1)
    assert collector.metrics == {}
    collector.collect(PROMPTS)
    assert collector.metrics.keys() == {"time/rollout", "time/reward", "perf/rollout_tokens_per_second"}
    before = collector.metrics
    collector.draw(PROMPTS, 1)
    assert collector.metrics is before
