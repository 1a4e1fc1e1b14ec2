"""Weights that learn: frozen ones and half precision are refused, and the share of weights that a step moves is logged."""

import csv
import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_rl.algorithms import PPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec
from lit_rl.sampling import Sampler
from lit_rl.training.weights import check_learning, share_moved, some_weights


def sft(spec=None, lr=1e-3):
    optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    return SFT(spec or tiny_spec(), optimizer=optimizer, evaluation=Evaluation(max_new_tokens=4))


def fit(folder, module, steps=2, **trainer) -> None:
    quiet_trainer(folder, max_steps=steps, **trainer).fit(module, tiny_data())


def moved(folder) -> dict[str, float]:
    """Logged shares of weights that moved, by step."""
    rows = csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return {row["step"]: float(row["weights_moved"]) for row in rows if row["weights_moved"]}


class Frozen(Callback):
    """A callback that freezes what a name begins with."""

    def __init__(self, prefix):
        self.prefix = prefix

    def setup(self, trainer, module, stage):
        module.configure_model()
        for name, weight in module.named_parameters():
            if name.startswith(self.prefix):
                weight.requires_grad_(False)


def test_a_group_without_a_weight_that_learns_is_refused():
    learns, frozen = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2), requires_grad=False)
    check_learning({"policy": {"params": [frozen, learns]}})
    for weights in ([], [frozen]):
        with pytest.raises(ValueError, match=r"^model\.critic: all of its weights are frozen"):
            check_learning({"policy": {"params": [learns]}, "critic": {"params": weights}})


def test_ppo_does_not_train_its_critic_alone(tmp_path):
    module = PPO(tiny_spec(), sampler=Sampler(4), reward=None, epochs=1, minibatches=1)
    with pytest.raises(ValueError, match=r"^model\.policy: all of its weights are frozen"):
        fit(tmp_path, module, callbacks=[Frozen("policy.model.")])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_would_learn_in_half_precision_are_refused(dtype, tmp_path):
    message = rf"^model\.policy: its weights learn in {dtype}, .* write trainer\.precision bf16-mixed"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, sft(tiny_spec(dtype=dtype)))


def test_adapters_on_a_base_in_half_precision_learn_in_float32(tmp_path):
    module = sft(tiny_spec(dtype="bfloat16", lora=LoRASpec(r=4)), lr=1e-6)
    fit(tmp_path, module, precision="bf16-mixed", logger=CSVLogger(tmp_path, name="", version=""))
    weights = module.policy.named_parameters()
    assert {(weight.requires_grad, weight.dtype) for _, weight in weights} == {
        (True, torch.float32),
        (False, torch.bfloat16),
    }
    assert moved(tmp_path)["1"] > 0.9


def test_the_share_of_moved_weights_counts_those_with_a_gradient():
    whole, half = nn.Parameter(torch.full((4,), 1.0)), nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
    still, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([whole, half, still, unused], lr=0.25)
    before = some_weights(optimizer)
    # In bfloat16 256 has steps of 1 above it: it moves by 0.25 nowhere, and by 4 in one place.
    whole.grad, half.grad = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, -16.0], dtype=torch.bfloat16)
    still.grad = torch.zeros(4)
    optimizer.step()
    assert share_moved(before, lambda values: values) == 5 / 8


def test_the_share_is_logged_once(tmp_path):
    fit(tmp_path, sft(), steps=4, logger=CSVLogger(tmp_path, name="", version=""))
    assert list(moved(tmp_path)) == ["1"]
    assert 0.9 < moved(tmp_path)["1"] <= 1
