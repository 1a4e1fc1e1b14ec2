"""The moving average of a model's weights."""

import pytest
import torch
from torch import nn

from lit_rl.models.ema import WeightAverage


def linear(*values: float, dtype=torch.float32) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor([values], dtype=dtype)
    return layer


def test_the_average_moves_by_its_share_once_per_step():
    model, average = linear(1.0, 8.0), WeightAverage(0.75)
    average.update(model, 0)
    assert average.weights["weight"].tolist() == [[1, 8]]
    model.weight.data = torch.tensor([[5.0, 0.0]])
    average.update(model, 0)
    assert average.weights["weight"].tolist() == [[1, 8]]
    average.update(model, 2)
    assert average.weights["weight"].tolist() == [[2, 6]]
    average.update(model, 3)
    assert average.weights["weight"].tolist() == [[2.75, 4.5]]


def test_the_average_of_bfloat16_weights_does_not_stand_still():
    model, average = linear(1.0, dtype=torch.bfloat16), WeightAverage(0.999)
    average.update(model, 0)
    model.weight.data += 1
    average.update(model, 1)
    assert float(average.weights["weight"]) == pytest.approx(1.001)


def test_weights_that_do_not_learn_are_not_averaged():
    model, average = nn.Linear(2, 1), WeightAverage(0.5)
    model.weight.requires_grad_(False)
    average.update(model, 0)
    assert set(average.weights) == {"bias"}


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_has_its_own_tensors_again_after_the_average_stood_in(breaks):
    model, average = linear(1.0, 8.0), WeightAverage(0.5)
    average.update(model, 0)
    model.weight.data = torch.tensor([[1 / 3, 0.1]])
    own, parameter = model.weight.data_ptr(), model.weight
    try:
        with average.in_place_of(model):
            assert model.weight.tolist() == [[1, 8]]
            if breaks:
                raise KeyError
    except KeyError:
        assert breaks
    assert model.weight is parameter
    assert model.weight.data_ptr() == own
    assert torch.equal(model.weight, torch.tensor([[1 / 3, 0.1]]))
