"""The view of a Trainer that code outside `training_step` gets."""

from types import SimpleNamespace

import torch
from conftest import quiet_trainer

from lit_rl.hooks import RolloutCallback
from lit_rl.runtime import Runtime


class Mark(RolloutCallback):
    """Leaves its name on what passes."""

    def __init__(self, name):
        self.name = name

    def on_rollout_start(self, trainer, module, prompts):
        return [*prompts, self.name]

    def on_rollout_end(self, trainer, module, rollouts):
        return [*rollouts, self.name.upper()]


def test_rollout_callbacks_speak_one_after_another(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[Mark("a"), Mark("b")])
    trainer.strategy.connect(torch.nn.Module())
    runtime = Runtime(trainer)
    assert runtime.on_rollout_start(["prompts"]) == ["prompts", "a", "b"]
    assert runtime.on_rollout_end(["rollouts"]) == ["rollouts", "A", "B"]


def test_a_rollout_callback_changes_nothing_by_default():
    prompts, rollouts = object(), object()
    assert RolloutCallback().on_rollout_start(None, None, prompts) is prompts
    assert RolloutCallback().on_rollout_end(None, None, rollouts) is rollouts


def test_one_process_gathers_and_sums_its_own_values(tmp_path):
    runtime, values = Runtime(quiet_trainer(tmp_path)), torch.tensor([3.0, -1.0])
    assert runtime.ranks == 1
    assert runtime.device == torch.device("cpu")
    for combine in (runtime.sum, runtime.max, runtime.gather):
        assert combine(values).tolist() == [3.0, -1.0]


def test_values_of_unequal_number_are_gathered_rank_after_rank():
    """Two ranks with 1 and 3 values, on a Trainer of which only the collective is there."""
    others = iter([torch.tensor(3), torch.tensor([5.0, 6.0, 7.0])])

    def all_gather(values):
        return torch.stack([values, next(others)])

    strategy = SimpleNamespace(all_gather=all_gather, root_device=torch.device("cpu"))
    runtime = Runtime(SimpleNamespace(strategy=strategy, world_size=2))
    assert runtime.gather(torch.tensor([4.0])).tolist() == [4.0, 5.0, 6.0, 7.0]
